"""Lightning shells, schedules, and a fit that resumes."""
