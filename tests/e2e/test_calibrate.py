"""`tenants levels` and `tenants calibrate` on the running application."""

from __future__ import annotations

import json

from deployments.config import REPOSITORY
from tests.e2e.conftest import CLASSIFIER, Application

SAMPLE = REPOSITORY / "models" / CLASSIFIER / "calibration.safetensors"


def test_a_running_model_is_calibrated_anew_and_answers_as_before(app: Application, ship: bytes) -> None:
    """On the inputs that calibrated it: the levels are solved again, and come out where they were."""
    path = f"/models/{CLASSIFIER}"
    with app.client("free") as client:
        before = client.post(path, content=ship)
        done = json.loads(app.tenants("calibrate", CLASSIFIER, str(SAMPLE), "--json"))
        after = client.post(path, content=ship)
    assert (done["model"], done["replicas"], done["answers"]) == (CLASSIFIER, 1, 4000)
    assert before.status_code == after.status_code == 200
    assert before.json() == after.json()
    levels = json.loads(app.tenants("levels", "--json"))
    assert CLASSIFIER in levels
    newest = json.loads(app.tenants("audit", "--json"))[0]
    assert (newest["action"], newest["subject"]) == ("model calibrate", CLASSIFIER)
