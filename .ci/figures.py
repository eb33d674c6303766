"""Holds the events of two runs of the quickstart to what the README promises."""
import json
import sys

first, second = ([json.loads(line) for line in open(path)] for path in sys.argv[1:3])
failures = []


def hold(ok, what):
    print(("ok      " if ok else "FAILED  ") + what)
    if not ok:
        failures.append(what)


def time(ok, what):
    """A machine can be busy with other things, so a time is shown and never a reason to fail."""
    print(("ok      " if ok else "SLOW    ") + what)


metrics = {event["stage"]: event["metrics"] for event in first if event["event"] == "done"}
summary = first[-1]
hold(summary["failed"] + summary["skipped"] + summary["cancelled"] == 0, "all stages of the first run are done")
time(summary["seconds"] <= 240, f"the first run took {summary['seconds']:.0f} s, at most 240")
hold(second[-1]["executed"] == 0 and second[-1]["cached"] == summary["executed"] + summary["cached"], "the second run executed nothing")
time(second[-1]["seconds"] < 0.3, f"the second run took {second[-1]['seconds']:.3f} s, below 0.3")
recognised = metrics["recognition"]["top1"]
hold(recognised >= 0.9, f"{recognised:.1%} of the generated digits are recognised as what they should be, at least 90 %")
for stage, figures in metrics.items():
    if stage.startswith("style["):
        plain, untrained, learned = (figures["heldout_loss_" + name] for name in ("plain", "untrained", "learned"))
        hold(learned < min(plain, untrained), f"{stage}: held-out loss {learned:.4f} with the learned token, {untrained:.4f} untrained, {plain:.4f} without")
sys.exit(1 if failures else 0)
