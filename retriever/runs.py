"""Runs: scored documents per query, in one canonical order. Candidates, teacher scores and results are all runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from retriever.errors import DataError
from retriever.files import fingerprint, write_atomic
from retriever.types import Qrels, Unit

Number = TypeVar("Number", bound=np.generic)
Strings = np.ndarray[tuple[int], np.dtypes.StringDType]


def strings(values: Iterable[str]) -> Strings:
    """A numpy array of variable-width strings; short ones take 16 bytes and no Python object each."""
    return cast(Strings, np.array(list(values), dtype=np.dtypes.StringDType()))  # numpy's stubs lose the dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Scored documents of Q queries, n pairs in all, best first.

    The order within a query is canonical: score descending, then document id descending, which is trec_eval's rule
    for ties. Document ids are kept once: ten million pairs take 80 MB.

    Attributes:
        name: what a report calls the run.
        query_ids: [Q], unique; a query may have no documents.
        offsets: int64 [Q + 1]; query i has the pairs offsets[i]:offsets[i + 1].
        codes: int32 [n], each pair's document as a place in `vocabulary`.
        vocabulary: [V], the distinct document ids.
        scores: float32 [n], finite.
    """

    name: str
    query_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    vocabulary: Strings
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        self._check_shapes()
        queries = self.query_numbers
        rank_of_code = np.empty(len(self.vocabulary), dtype=np.int32)
        rank_of_code[np.argsort(self.vocabulary, kind="stable")] = np.arange(len(self.vocabulary), dtype=np.int32)
        order = np.lexsort((-rank_of_code[self.codes], -self.scores, queries))
        object.__setattr__(self, "codes", self.codes[order])
        object.__setattr__(self, "scores", self.scores[order])
        self._check_duplicates(queries)

    def _check_shapes(self) -> None:
        pairs = len(self.scores)
        if len(self.offsets) != len(self.query_ids) + 1 or self.offsets[0] != 0 or self.offsets[-1] != pairs or len(self.codes) != pairs:
            raise DataError(
                f'run "{self.name}": {len(self.query_ids)} queries, {len(self.offsets)} offsets, {len(self.codes)} documents and {pairs} scores do not fit'
            )
        if len(set(self.query_ids)) != len(self.query_ids):
            raise DataError(f'run "{self.name}": a query stands in it twice')
        if not np.isfinite(self.scores).all():
            pair = int(np.flatnonzero(~np.isfinite(self.scores))[0])
            query_id = self.query_ids[int(np.searchsorted(self.offsets, pair, side="right")) - 1]
            doc_id = self.vocabulary[self.codes[pair]]
            raise DataError(f'run "{self.name}": query {query_id}, document {doc_id}: the score {self.scores[pair]} is not a finite number')

    def _check_duplicates(self, queries: NDArray[np.int64]) -> None:
        keys = np.sort(queries * max(len(self.vocabulary), 1) + self.codes)
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if len(repeated):
            query, code = divmod(int(keys[repeated[0]]), len(self.vocabulary))
            raise DataError(f'run "{self.name}": query {self.query_ids[query]} has the document {self.vocabulary[code]} twice')

    # Making one

    @classmethod
    def from_arrays(cls, name: str, query_ids: Sequence[str], counts: ArrayLike, doc_ids: Sequence[str] | Strings, scores: ArrayLike) -> Run:
        """A run of flat pairs: `counts` [Q] documents for each query in turn, `doc_ids` and `scores` [n]."""
        offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)
        encoded = pa.array(doc_ids, type=pa.large_string()).dictionary_encode()
        return cls(
            name, tuple(query_ids), offsets, _numpy(encoded.indices, np.int32), strings(encoded.dictionary.to_pylist()), np.asarray(scores, dtype=np.float32)
        )

    @classmethod
    def from_dict(cls, name: str, scores: Mapping[str, Mapping[str, float]]) -> Run:
        """A run of nested mappings: query id -> document id -> score."""
        doc_ids = [doc_id for documents in scores.values() for doc_id in documents]
        values = np.array([score for documents in scores.values() for score in documents.values()], dtype=np.float32)
        return cls.from_arrays(name, list(scores), [len(documents) for documents in scores.values()], doc_ids, values)

    # Reading it

    def __len__(self) -> int:
        """Q, the number of queries."""
        return len(self.query_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.query_ids)

    def __contains__(self, query_id: object) -> bool:
        return query_id in self.numbers

    def __getitem__(self, query_id: str) -> list[tuple[str, float]]:
        """(document id, score) of a query, best first; empty for a query that is not in the run."""
        number = self.numbers.get(query_id)
        if number is None:
            return []
        pairs = self.pairs_of(number)
        return list(zip(self.vocabulary[self.codes[pairs]].tolist(), self.scores[pairs].tolist(), strict=True))

    @property
    def numbers(self) -> dict[str, int]:
        """Query id -> its number in this run; made once."""
        if "_numbers" not in self.__dict__:
            object.__setattr__(self, "_numbers", {query_id: number for number, query_id in enumerate(self.query_ids)})
        numbers: dict[str, int] = self.__dict__["_numbers"]
        return numbers

    @property
    def n_pairs(self) -> int:
        """n, the number of query-document pairs."""
        return len(self.scores)

    @property
    def counts(self) -> NDArray[np.int64]:
        """[Q], documents per query."""
        return np.diff(self.offsets)

    @property
    def query_numbers(self) -> NDArray[np.int64]:
        """[n], the number of each pair's query."""
        return np.repeat(np.arange(len(self.query_ids), dtype=np.int64), np.diff(self.offsets))

    @property
    def doc_ids(self) -> Strings:
        """[n], the document id of each pair."""
        return self.vocabulary[self.codes]

    def pairs_of(self, number: int) -> slice:
        """Where the pairs of a query lie in the flat arrays."""
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Nested dictionaries in canonical order, as ranx, pytrec_eval and people read them."""
        return {query_id: dict(self[query_id]) for query_id in self.query_ids}

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any query, document or score; the name does not count."""
        digest = hashlib.sha256("\n".join(self.query_ids).encode())
        digest.update(np.ascontiguousarray(self.offsets).tobytes())
        digest.update("\n".join(self.doc_ids.tolist()).encode())
        digest.update(np.ascontiguousarray(self.scores).tobytes())
        return fingerprint(digest.hexdigest())

    # Deriving another

    def rename(self, name: str) -> Run:
        """The same run under another name."""
        return dataclasses.replace(self, name=name)

    def keep(self, mask: NDArray[np.bool_]) -> Run:
        """The pairs where `mask` [n] is true; every query stays, perhaps without documents."""
        counts = np.bincount(self.query_numbers[mask], minlength=len(self.query_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return dataclasses.replace(self, offsets=offsets, codes=self.codes[mask], scores=self.scores[mask])

    def top(self, depth: int) -> Run:
        """The best `depth` documents of every query."""
        ranks = np.arange(self.n_pairs) - np.repeat(self.offsets[:-1], self.counts)
        return self.keep(ranks < depth)

    def select(self, query_ids: Iterable[str]) -> Run:
        """The named queries, in the order given; one that is not in the run is there without documents."""
        wanted = tuple(query_ids)
        slices = [self.pairs_of(self.numbers[q]) if q in self.numbers else slice(0, 0) for q in wanted]
        pairs = np.concatenate([np.arange(s.start, s.stop) for s in slices]) if slices else np.arange(0)
        offsets = np.concatenate([[0], np.cumsum([s.stop - s.start for s in slices])]).astype(np.int64)
        return Run(self.name, wanted, offsets, self.codes[pairs], self.vocabulary, self.scores[pairs])

    def with_scores(self, name: str, scores: ArrayLike) -> Run:
        """The same pairs with other scores [n], given in this run's order; the result is sorted anew."""
        return dataclasses.replace(self, name=name, scores=np.asarray(scores, dtype=np.float32))

    def without_own_documents(self) -> Run:
        """Without documents whose id is the query's: for collections whose queries are documents themselves."""
        own = strings(self.query_ids)[self.query_numbers] if self.n_pairs else strings([])
        return self.keep(np.asarray(self.doc_ids != own, dtype=np.bool_))

    # On disk

    def write_parquet(self, path: Path, unit: Unit | None = None) -> None:
        """Writes one row per query: query_id, doc_ids, scores; and what the scores mean, where it is known. Queries without documents are kept."""
        offsets = pa.array(self.offsets, type=pa.int64())
        documents = pa.LargeListArray.from_arrays(offsets, pa.array(self.doc_ids.tolist(), type=pa.large_string()))
        scores = pa.LargeListArray.from_arrays(offsets, pa.array(self.scores))
        table = pa.table({"query_id": pa.array(self.query_ids, type=pa.string()), "doc_ids": documents, "scores": scores})
        facts = {"name": self.name} | ({"unit": unit} if unit else {})
        write_atomic(path, lambda temporary: pq.write_table(table.replace_schema_metadata(facts), temporary))

    @classmethod
    def read_parquet(cls, path: Path) -> Run:
        """Reads what `write_parquet` wrote.

        Raises:
            DataError: the file is not a run.
        """
        try:
            table = pq.read_table(path).combine_chunks()
            documents, scores = (_one_chunk(table[column]) for column in ("doc_ids", "scores"))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a run in Parquet ({error})") from error
        counts = np.diff(_numpy(documents.offsets, np.int64))
        name = (table.schema.metadata or {}).get(b"name", path.stem.encode()).decode()
        return cls.from_arrays(name, table["query_id"].to_pylist(), counts, documents.flatten(), _numpy(scores.flatten(), np.float32))

    def write_trec(self, path: Path) -> None:
        """Writes `query Q0 document rank score tag` lines; reading them back gives the same scores and order."""
        with_ranks = ((query_id, enumerate(self[query_id], 1)) for query_id in self.query_ids)
        lines = (f"{query_id} Q0 {doc_id} {rank} {np.float32(score)!s} {self.name}\n" for query_id, ranked in with_ranks for rank, (doc_id, score) in ranked)

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.writelines(lines)

        write_atomic(path, write)

    @classmethod
    def read_trec(cls, path: Path, name: str | None = None) -> Run:
        """Reads a TREC run, fields parted by spaces or tabs; the rank column is ignored, as trec_eval does.

        Raises:
            DataError: a line has not six fields or its score is no number; the message names file and line.
        """
        scores: dict[str, dict[str, float]] = {}
        tag = path.stem
        for number, fields in _fields(path):
            if len(fields) != 6:
                raise DataError(f"{path}:{number}: a TREC run has 6 fields (query Q0 document rank score tag), this line has {len(fields)}")
            query_id, _, doc_id, _, score, tag = fields
            if doc_id in scores.setdefault(query_id, {}):
                raise DataError(f"{path}:{number}: query {query_id} has the document {doc_id} twice")
            try:
                scores[query_id][doc_id] = float(score)
            except ValueError as error:
                raise DataError(f'{path}:{number}: the score "{score}" is not a number') from error
        return cls.from_dict(name or tag, scores)


def read_run(path: Path) -> Run:
    """The run in a file: Parquet, as `Run.write_parquet` writes it, or TREC.

    Raises:
        DataError: the file is neither, or cannot be read.
    """
    if is_parquet(path):
        return Run.read_parquet(path)
    try:
        return Run.read_trec(path)
    except DataError as error:
        raise DataError(f'{error}. A file of another format becomes a run by: retriever import "{path}" --out RUN.parquet') from error


def unit_of(path: Path) -> str | None:
    """What the scores of a run in Parquet mean, where the file says so."""
    found = (pq.read_schema(path).metadata or {}).get(b"unit") if is_parquet(path) else None
    return found.decode() if found else None


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does, whatever its name.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Reads qrels in TREC form (query 0 document grade) or BEIR form (query-id, corpus-id, score with a header).

    Raises:
        DataError: a line has another number of fields or its grade is no integer; the message names file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, fields in _fields(path):
        if number == 1 and len(fields) == 3 and not fields[2].lstrip("-").isdigit():
            continue  # BEIR's header
        if len(fields) not in (3, 4):
            raise DataError(f"{path}:{number}: qrels have 3 fields (query document grade) or 4 (query 0 document grade), this line has {len(fields)}")
        query_id, doc_id, grade = fields[0], fields[-2], fields[-1]
        try:
            qrels.setdefault(query_id, {})[doc_id] = int(grade)
        except ValueError as error:
            raise DataError(f'{path}:{number}: the grade "{grade}" is not a whole number') from error
    return qrels


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Writes qrels in TREC form."""
    lines = "".join(f"{q} 0 {d} {grade}\n" for q, documents in qrels.items() for d, grade in documents.items())
    write_atomic(path, lambda temporary: temporary.write_text(lines, encoding="utf-8"))


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if fields := line.split():
                    yield number, fields
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _one_chunk(column: pa.ChunkedArray) -> pa.LargeListArray:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numpy(array: pa.Array, dtype: type[Number]) -> NDArray[Number]:
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)
