"""What every simulated service agrees on: the lineage, a digest a version, and a model folder without weights."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from sluice import PROTOCOL_VERSION
from sluice.model_identity import model_identity
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb

LINEAGE = "a"
TOKENS = ("<pad>", "<bos>", "<eos>", *"0123456789+-*/=() \n?:.,;#<>_", *"abcdefghijklmnopqrstuvwxyz")
END_TOKEN = 2


def version(number: int) -> common.PolicyVersion:
    """The only lineage there is."""
    return common.PolicyVersion(lineage=LINEAGE, number=number)


def digest(number: int) -> str:
    """Stands for the weights of a version."""
    return f"weights-{number}"


def write_model(folder: Path) -> Path:
    """As much of a model as a coordinator looks at: config.json and a tokenizer of one character a token."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": len(TOKENS)}))
    return folder


def registration(
    role: "pb.ServiceRole.ValueType", *, service_id: str, address: str, model: Path, capacity: int
) -> pb.RegisterRequest:
    """What a simulated service says of itself."""
    identity = model_identity(model)
    return pb.RegisterRequest(
        role=role,
        service_id=service_id,
        address=address,
        protocol_version=PROTOCOL_VERSION,
        model_hash=identity.model_hash,
        tokenizer_hash=identity.tokenizer_hash,
        engine="simulated",
        capacity=capacity,
        max_model_len=1 << 20,
        version=version(0),
        incarnation=f"{service_id}-simulated",
    )
