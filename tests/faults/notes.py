"""Where the jobs under faults note their attempts."""

NOTES = "CRAFT_EASY_FAULTS_NOTES"
"""Environment name of the folder."""
