"""What is known of a bundle on one page: HTML that works offline, or Markdown."""

from twins_trt.report.page import write_report

__all__ = ["write_report"]
