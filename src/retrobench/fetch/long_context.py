"""Data files of MRCR, BABILong, InfiniteBench and SCBench."""

from typing import Any

from retrobench.fetch.data_file import DataFile, Rows

# SHA-256 of the files at the revision of 2025-12-08, as the Hub's LFS pointers give them
_MRCR_REVISION = "f4c69fae7cf81f7ca26b9fee34b392a50f6b8a1d"
_MRCR = {
    "2needle/2needle_0": "1c297b254bf64a31856b74918cd7db889a214503e0b67daa834e84f20df6aa93",
    "2needle/2needle_1": "a5a1dc9ccc945623253d04d33c03d89aee2d676c88955ce368da2ab16a0ce94d",
    "4needle/4needle_0": "4d4fa3d11ce064749de3cd039eef1a621e30a81c2c9b3e64f1df37f8afeaf312",
    "4needle/4needle_1": "8dfdb94a208cf3eee73c4e7ac6ee8a5ccb7236c6934c13c6c5f67c0a9928cdf3",
    "8needle/8needle_0": "65df601a2e0ae4a3cfb56920a6ef99f26c0de37c6b1018695e8aed684e6a94c1",
    "8needle/8needle_1": "c80b19573bff1d38e1c157d6a0bdf9cfd1a8ab6372296174c9a7015e164189e3",
}
MRCR = {
    f"mrcr/{name}.parquet": DataFile(
        repo="openai/mrcr",
        licence="MIT",
        about_mb=230,
        file=f"{name}.parquet",
        revision=_MRCR_REVISION,
        sha256=digest,
    )
    for name, digest in _MRCR.items()
}


def records(rows: Rows) -> list[dict[str, Any]]:
    """Rows as they are, a line each."""
    return [dict(row) for row in rows]


# the sets and lengths that the data set's card lists for all of qa1 to qa10
BABILONG = {
    f"babilong/{length}/qa{number}.jsonl": DataFile(
        repo="RMT-team/babilong",
        licence="Apache-2.0; facts of bAbI (BSD)",
        config=length,
        split=f"qa{number}",
        convert=records,
    )
    for length in ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
    for number in range(1, 11)
}

_INFINITEBENCH = (
    "passkey number_string kv_retrieval longbook_sum_eng longbook_choice_eng longbook_qa_eng "
    "longbook_qa_chn longdialogue_qa_eng math_find math_calc code_run code_debug"
)
INFINITEBENCH = {
    f"infinitebench/{name}.jsonl": DataFile(
        repo="xinrongzhang2022/InfiniteBench",
        licence="MIT (code); terms of its source texts",
        file=f"{name}.jsonl",
    )
    for name in _INFINITEBENCH.split()
}

_SCBENCH = (
    "kv prefix_suffix vt repoqa qa_eng qa_chn choice_eng many_shot summary mf "
    "summary_with_needles repoqa_and_kv"
)
SCBENCH = {
    f"scbench/scbench_{name}.jsonl": DataFile(
        repo="microsoft/SCBench",
        licence="MIT (code); terms of its source texts",
        config=f"scbench_{name}",
        split="test",
        convert=records,
    )
    for name in _SCBENCH.split()
}
