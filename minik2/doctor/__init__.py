"""What this machine is, how fast it is, what is in the way of the course, and how long that takes.

`examine()` takes about ten seconds; `print` its report, or take `to_dict()`.
"""

from minik2.doctor.report import Lesson, Report, examine

__all__ = ["Lesson", "Report", "examine"]
