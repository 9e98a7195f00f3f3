"""Graders of one's own: functions, classes, HTTP endpoints and commands, by what `grader` names."""
