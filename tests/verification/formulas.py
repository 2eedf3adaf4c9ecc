"""Random formulas, as VNN-LIB has them and as Python computes them."""

import math
import operator
import random

COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "!=": operator.ne}


class Written:
    """A random formula as VNN-LIB has it, and as Python computes it from the values of its variables."""

    def __init__(self, seed, names):
        self.random, self.names = random.Random(seed), names

    def term(self, depth):
        kind = self.random.random()
        if depth == 0 or kind < 0.3:
            if self.random.random() < 0.3:
                number = round(self.random.uniform(-2, 2), 2)
                return f"{number:.2f}", lambda values: number
            name = self.random.choice(self.names)
            return name, lambda values: values[name]
        parts = [self.term(depth - 1) for _ in range(self.random.choice((1, 2, 2, 3)))]
        word = self.random.choice("+-*")
        values_of = [value for _, value in parts]
        text = f"({word} {' '.join(text for text, _ in parts)})"
        if word == "+":
            return text, lambda values: sum(value(values) for value in values_of)
        if word == "*":
            return text, lambda values: math.prod(value(values) for value in values_of)
        if len(parts) == 1:
            return text, lambda values: -values_of[0](values)
        return text, lambda values: values_of[0](values) - sum(value(values) for value in values_of[1:])

    def formula(self, depth):
        if depth == 0 or self.random.random() < 0.3:
            (left, a), (right, b) = self.term(2), self.term(1)
            word = self.random.choice(("<=", ">=", "<", ">", "!="))
            return f"({word} {left} {right})", lambda values: COMPARE[word](a(values), b(values))
        parts = [self.formula(depth - 1) for _ in range(self.random.choice((1, 2, 3)))]
        word, quantifier = self.random.choice((("and", all), ("or", any)))
        truths = [truth for _, truth in parts]
        return f"({word} {' '.join(text for text, _ in parts)})", lambda values: quantifier(t(values) for t in truths)


def boxed(names, low, high):
    return "\n".join(f"(assert (and (>= {name} {low:.2f}) (<= {name} {high:.2f})))" for name in names)
