"""What a run says and leaves behind: log, report, speed."""
