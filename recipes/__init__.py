"""The recipes that ship with distillkit, and the students that they made."""
