"""What a model under training writes: pieces of marks, numbers and TeX, in any order and as long as it likes."""

from hypothesis import strategies as st

PIECES = st.sampled_from(
    ["Answer:", "\\boxed{", "}", "{", "<answer>", "</answer>", "#### ", "\n", "\\frac", "1", "-", ",", ".", "$", "%", "(",
     " ", "\\text{", "\x00", "\ufffd", "½", "B", "e9", "/", "^", "####", "√", "٣", "<think>"]
)  # fmt: skip
HOSTILE = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.text(max_size=200),
    st.tuples(PIECES, st.integers(min_value=1, max_value=100_000)).map(lambda pair: pair[0] * pair[1]),
)
