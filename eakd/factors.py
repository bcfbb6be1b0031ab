"""The reweighting factors, as a table: a new weighting is one line here.

Each is ``f(teacher_entropy, student_entropy, bound)`` on tensors of one shape, in nats; ``bound``
is a number. Its name is a value of ``weighting=``. The table imports nothing, so that the command
line can list its names without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Factor = Callable[[Any, Any, float], Any]

FACTORS: dict[str, Factor] = {
    # The plain method. Only the student's entropy is used: there may be no teacher.
    "uniform": lambda teacher, student, bound: student.new_ones(student.shape),
    "teacher": lambda teacher, student, bound: teacher,  # Eq. 9 (base); Tables 1 and 8
    "student": lambda teacher, student, bound: student,  # Table 1
    "interaction": lambda teacher, student, bound: teacher * student / bound,  # Eq. 10; Table 8
    "ea": lambda teacher, student, bound: (teacher + teacher * student / bound) / 2,  # Eqs. 11-12
    "inverted_teacher": lambda teacher, student, bound: bound - teacher,  # Table 1
    "inverted_student": lambda teacher, student, bound: bound - student,  # Table 1
}

# Controls, kind → the factor that they deal out in another way:
MATCHED = {"matched": "ea"}  # every sample gets the batch's mean: its scale, without selection
SHUFFLED = {"shuffled": "ea"}  # every sample gets another's: its scale and spread, at random

KINDS = (*FACTORS, *MATCHED, *SHUFFLED)
