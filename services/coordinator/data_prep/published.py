"""The published data sets that have a name here. Both have verl's columns already; both repeat their prompts.

Repositories and paths are those of verl's `recipe/dapo/prepare_dapo_data.sh`.
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
    """Of the file, within the repository."""
    recipe: str
    """What a recipe that uses it says, with `{file}` and `{prompts}`."""

    @property
    def file_name(self) -> str:
        """Of the file that is written, too."""
        return Path(self.path).name

    def by_hand(self) -> str:
        """How to come by the file on a machine with a network, and how to go on with it here."""
        return (
            f"On a machine that reaches it:\n"
            f"  curl -L -o {self.file_name} {HUB}/datasets/{self.repository}/resolve/main/{self.path}\n"
            f"and here, with that file:\n"
            f"  sluice data prepare {self.name} --source {self.file_name}"
        )


PUBLISHED = {
    one.name: one
    for one in (
        # Each of about 17 thousand prompts stands there about a hundred times (BytedTsinghua-SIA/DAPO, issue 15).
        Published(
            name="dapo-math-17k",
            repository="BytedTsinghua-SIA/DAPO-Math-17k",
            path="data/dapo-math-17k.parquet",
            recipe="data:\n  train_files: [{file}]",
        ),
        # 30 problems, 32 times each, for a mean over 32 samples. Here eval.n draws them.
        Published(
            name="aime-2024",
            repository="BytedTsinghua-SIA/AIME-2024",
            path="data/aime-2024.parquet",
            recipe="data:\n  val_files: [{file}]\neval:\n  prompts: {prompts}\n  n: 32\n  small_prompts: {prompts}\n"
            "  small_n: 32",
        ),
    )
}
