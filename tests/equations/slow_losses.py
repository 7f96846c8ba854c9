"""The losses once more as plain loops in double precision, straight from the equations: lists of numbers in, a number out."""

import math
from collections.abc import Sequence

Scores = Sequence[Sequence[float]]
Masks = Sequence[Sequence[bool]]


def real(values: Sequence[float], mask: Sequence[bool]) -> list[float]:
    return [value for value, is_real in zip(values, mask, strict=True) if is_real]


def lists(student: Scores, teacher: Scores, mask: Masks) -> list[tuple[list[float], list[float]]]:
    """Each query's real documents: the student's and the teacher's scores."""
    return [(real(s, m), real(t, m)) for s, t, m in zip(student, teacher, mask, strict=True)]


def softmax(scores: Sequence[float]) -> list[float]:
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def average(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def margin_mse(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([((s[0] - s[k]) - (t[0] - t[k])) ** 2 for s, t, m in zip(student, teacher, mask, strict=True) for k in range(1, len(s)) if m[0] and m[k]])


def margin_mse_all_pairs(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([((s[i] - s[j]) - (t[i] - t[j])) ** 2 for s, t in lists(student, teacher, mask) for i in range(len(s)) for j in range(i + 1, len(s))])


def pointwise_mse(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([(a - b) ** 2 for s, t in lists(student, teacher, mask) for a, b in zip(s, t, strict=True)])


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kl_divergence(student: Scores, teacher: Scores, mask: Masks, temperature: float = 1.0) -> float:
    return average([divergence(softmax([score / temperature for score in t]), softmax(s)) for s, t in lists(student, teacher, mask)])


def divided_by_deviation(scores: Sequence[float]) -> list[float]:
    middle = average(scores)
    deviation = math.sqrt(average([(score - middle) ** 2 for score in scores]))
    return [score / deviation if deviation else score for score in scores]


def standardised_kl(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([divergence(softmax(divided_by_deviation(t)), softmax(divided_by_deviation(s))) for s, t in lists(student, teacher, mask)])


def dynamic_contrastive(student: Scores, teacher: Scores, mask: Masks, temperature: float = 1.0) -> float:
    terms = []
    for s, t in lists(student, teacher, mask):
        told, own = softmax([score / temperature for score in t]), softmax(s)
        unsure = -sum(chance * math.log(chance) for chance in told) / math.log(len(told)) if len(told) > 1 else 0.0
        terms.append((1 - unsure) ** 2 * divergence(told, own) + unsure * -math.log(own[0]))
    return average(terms)


def in_batch_similarity(student: Scores, teacher: Scores, mask: Masks, temperature: float = 0.05) -> float:
    return average(
        [
            -sum(a * math.log(b) if a else 0 for a, b in zip(softmax([score / temperature for score in t]), softmax(s), strict=True))
            for s, t in lists(student, teacher, mask)
        ]
    )


def contrastive(student: Scores, _: Scores, mask: Masks) -> float:
    return -average([math.log(softmax(real(s, m))[0]) for s, m in zip(student, mask, strict=True)])


def ordered_pairs(teacher: Sequence[float]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(teacher)) for j in range(len(teacher)) if teacher[i] > teacher[j]]


def ranknet(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([math.log(1 + math.exp(s[j] - s[i])) for s, t in lists(student, teacher, mask) for i, j in ordered_pairs(t)])


def mean_ranks(scores: Sequence[float]) -> list[float]:
    best_first = sorted(scores, reverse=True)
    return [average([place for place, other in enumerate(best_first, start=1) if other == score]) for score in scores]


def grades(teacher: Sequence[float], highest: float) -> list[float]:
    return [highest * (len(teacher) - rank) / max(len(teacher) - 1, 1) for rank in mean_ranks(teacher)]


def lambda_loss(student: Scores, teacher: Scores, mask: Masks, mu: float = 10.0, highest_grade: float = 4.0) -> float:
    terms = []
    for s, t in lists(student, teacher, mask):
        gains = [2**grade - 1 for grade in grades(t, highest_grade)]
        ideal = sum(gain / math.log2(1 + rank) for rank, gain in enumerate(sorted(gains, reverse=True), start=1))
        order = sorted(range(len(s)), key=lambda place: (-s[place], t[place]))
        for i, j in ordered_pairs(t):
            first, second = order.index(i) + 1, order.index(j) + 1
            apart = abs(first - second)
            delta = 1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)
            weight = (mu * delta + abs(1 / math.log2(1 + first) - 1 / math.log2(1 + second))) * abs(gains[i] - gains[j]) / ideal
            terms.append(weight * math.log2(1 + math.exp(s[j] - s[i])))
    return average(terms)


def choices(student: Sequence[float], teacher: Sequence[float], rest: Sequence[float] = ()) -> list[float]:
    """Minus the log-probability of each choice, the teacher's best document first; `rest` is chosen after all of them."""
    in_order = [score for _, score in sorted(zip(teacher, student, strict=True), key=lambda pair: -pair[0])]
    return [-math.log(softmax([*in_order[place:], *rest])[0]) for place in range(len(in_order))]


def list_mle(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([sum(choices(s, t)) for s, t in lists(student, teacher, mask)])


def partial_ranking(student: Scores, teacher: Scores, mask: Masks) -> float:
    return average([term for s, t, m in zip(student, teacher, mask, strict=True) for term in choices(real(s[1:], m[1:]), real(t[1:], m[1:]))])


def adr_mse(student: Scores, teacher: Scores, mask: Masks, alpha: float = 1.0) -> float:
    terms = []
    for s, t in lists(student, teacher, mask):
        for i, rank in enumerate(mean_ranks(t)):
            smooth = 1 + sum(1 / (1 + math.exp(-alpha * (s[j] - s[i]))) for j in range(len(s)) if j != i)
            terms.append((rank - smooth) ** 2 / math.log2(rank + 1))
    return average(terms)
