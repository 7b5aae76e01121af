"""Report a result: as one HTML page, as JSON, and in short for a terminal."""

from secateur.report.as_json import json_report
from secateur.report.console import console_report
from secateur.report.html import html_report
from secateur.report.reported import Reported

__all__ = ["Reported", "console_report", "html_report", "json_report"]
