"""The table of examples/mask_cases.json, which the Rust client is held to as well: python -m unittest test_mask"""

import json
import unittest
from pathlib import Path

from service import Mask, leaf_paths

CASES = json.loads((Path(__file__).resolve().parents[1] / "mask_cases.json").read_text())


class TestMask(unittest.TestCase):
    def test_applying_a_mask_leaves_exactly_what_is_granted(self):
        for row in CASES["apply"]:
            with self.subTest(row["why"]):
                self.assertEqual(Mask(row["mask"]).apply(row["document"]), row["left"])

    def test_a_write_is_refused_by_the_paths_that_are_not_granted(self):
        for row in CASES["refused"]:
            with self.subTest(row["why"]):
                self.assertEqual(Mask(row["mask"]).refused_by(row["patch"]), row["refused"])
                self.assertLessEqual(set(row["refused"]), set(leaf_paths(row["patch"])))


if __name__ == "__main__":
    unittest.main()
