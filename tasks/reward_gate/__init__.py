"""Whether a newly trained reward model becomes the grader: what it must hold against the one in charge."""
