"""The two published data sets that `sluice data prepare` knows. They have verl's columns, and they repeat their
prompts.

Repositories and paths come from verl's `recipe/dapo/prepare_dapo_data.sh`.
"""

from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One file of a data set on the Hugging Face hub."""

    name: str
    repository: str
    path: str
    """The path of the file within the repository."""
    recipe: str
    """The lines of a recipe that uses the data set, with `{file}` and `{prompts}`."""

    @property
    def file_name(self) -> str:
        """The name of the published file, and of the file that is written."""
        return Path(self.path).name

    def by_hand(self) -> str:
        """How to fetch the file on a machine with a network, and how to prepare the fetched file here."""
        return (
            f"On a machine that reaches it:\n"
            f"  curl -L -o {self.file_name} {HUB}/datasets/{self.repository}/resolve/main/{self.path}\n"
            f"and here, with that file:\n"
            f"  sluice data prepare {self.name} --source {self.file_name}"
        )


PUBLISHED = {
    one.name: one
    for one in (
        # The file has each of about 17 thousand prompts about a hundred times (BytedTsinghua-SIA/DAPO, issue 15).
        Published(
            name="dapo-math-17k",
            repository="BytedTsinghua-SIA/DAPO-Math-17k",
            path="data/dapo-math-17k.parquet",
            recipe="data:\n  train_files: [{file}]",
        ),
        # 30 problems, 32 times each, for a mean over 32 samples. In Sluice eval.n draws the 32 samples.
        Published(
            name="aime-2024",
            repository="BytedTsinghua-SIA/AIME-2024",
            path="data/aime-2024.parquet",
            recipe="data:\n  val_files: [{file}]\neval:\n  prompts: {prompts}\n  n: 32\n  small_prompts: {prompts}\n"
            "  small_n: 32",
        ),
    )
}
