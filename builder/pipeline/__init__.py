"""From a detector to a repository: export, verification, report, writing."""
