"""Teachers: prompts in, answers out. Every answer is stored, and no request is sent twice."""
