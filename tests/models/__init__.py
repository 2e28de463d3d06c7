"""Models that tests need as files. Nothing here runs."""
