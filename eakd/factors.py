"""The weightings, as tables: a new one is one line here, and its name a value of ``weighting=``.

A factor is ``f(teacher_entropy, student_entropy, bound)`` on tensors of one shape, in nats;
``bound`` is a number. A rule is ``f(seen)`` on what both networks predict, an
`eakd.weighting.Seen`: probabilities and labels. The tables import nothing, so that the command line
can list their names without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Factor = Callable[[Any, Any, float], Any]
Rule = Callable[[Any], Any]

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

# What others weigh samples by; docs/weightings.md has the sources, and in what each differs.
RULES: dict[str, Rule] = {
    "confidence": lambda seen: seen.teacher.amax(-1),  # after Furlanello et al., 2018 (CWTM)
    "inverted_confidence": lambda seen: 1 - seen.teacher.amax(-1),
    "true_class": lambda seen: seen.true(seen.teacher),  # after Zhang et al., 2022 (CA-MKD)
    "margin": lambda seen: -seen.teacher.topk(2).values.diff()[..., 0],  # of active learning
    "inverted_margin": lambda seen: 1 + seen.teacher.topk(2).values.diff()[..., 0],
    "focal": lambda seen: (1 - seen.true(seen.student)) ** seen.gamma,  # after Lin et al., 2017
    "power_sum": lambda seen: (seen.teacher**seen.gamma).sum(-1),  # Zheng & Yang, 2024 (WTTM)
}
GAMMAS = {"focal": 2.0, "power_sum": 0.25}  # the rules with an exponent, and its default

# Controls, kind → the factor that they deal out in another way:
MATCHED = {"matched": "ea"}  # every sample gets the batch's mean: its scale, without selection
SHUFFLED = {"shuffled": "ea"}  # every sample gets another's: its scale and spread, at random

# The same selection at EA's scale: the weights times a number, so that their batch mean is EA's.
RESCALED = {
    f"{kind}_rescaled": kind for kind in {**FACTORS, **RULES} if kind not in ("uniform", "ea")
}

KINDS = (*FACTORS, *RULES, *MATCHED, *SHUFFLED, *RESCALED)
BASES = MATCHED | SHUFFLED | RESCALED  # kind → the factor or rule that it is made of
