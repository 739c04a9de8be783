"""Evaluation: accuracy against a fair baseline, AUROC, probes, faithfulness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.evaluation._average_precision import Drop as Drop
    from brickyard.evaluation._average_precision import Precision as Precision
    from brickyard.evaluation._average_precision import average_precision as average_precision
    from brickyard.evaluation._average_precision import paired_drop as paired_drop
    from brickyard.evaluation._detectors import DetectorRow as DetectorRow
    from brickyard.evaluation._detectors import DetectorScores as DetectorScores
    from brickyard.evaluation._faithfulness import Faithfulness as Faithfulness
    from brickyard.evaluation._faithfulness import faithfulness as faithfulness
    from brickyard.evaluation._probe import Probe as Probe
    from brickyard.evaluation._probe import Score as Score
    from brickyard.evaluation._probe import features as features
    from brickyard.evaluation._probe import h_score as h_score
    from brickyard.evaluation._probe import log_evidence as log_evidence
    from brickyard.evaluation._probe import probe as probe
    from brickyard.evaluation._scores import Row as Row
    from brickyard.evaluation._scores import Scores as Scores

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "evaluation._average_precision": "Drop Precision average_precision paired_drop",
        "evaluation._detectors": "DetectorRow DetectorScores",
        "evaluation._faithfulness": "Faithfulness faithfulness",
        "evaluation._probe": "Probe Score features h_score log_evidence probe",
        "evaluation._scores": "Row Scores",
    },
)
