"""Export of students to other formats, and import of other models as students."""
