"""The Helm chart renders to manifests that Kubernetes takes, keeps its promises about the pod, and refuses what can't be meant.
Needs helm-python-sdk (Helm's own code) and kubernetes-validate (Kubernetes' own schemas); no cluster, no network.

    python tests/chart.py             every case of tests/chart/
    python tests/chart.py --update    writes anew what is made: the chart's README, tests/chart/rendered/
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "chart"))
# Nothing but what is committed is left behind.
sys.dont_write_bytecode = True

import examples, monitoring, network, pods, readme, refusals, scaling, sidecars, sources  # noqa: E401, E402


def main():
    if sys.argv[1:] == ["--update"]:
        readme.update()
        examples.update()
        print("chart: README.md and rendered/ written")
        return 0
    cases = [case for module in (examples, refusals, pods, sources, network, scaling, monitoring, sidecars, readme) for case in module.CASES]
    failed = 0
    for case in cases:
        try:
            case()
            print(f"chart: {case.__name__} ... ok")
        except Exception as error:  # every case is told, not the first alone
            failed += 1
            print(f"chart: {case.__name__} ... FAILED: {type(error).__name__}: {error}")
    print(f"chart: {len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
