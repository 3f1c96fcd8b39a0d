"""What a run reports: its log, a page with plots, its speed."""
