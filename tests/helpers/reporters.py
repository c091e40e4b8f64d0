"""Reporters that keep what they are told."""

from kresume.reporter import Reporter


class Warned(Reporter):
    """A reporter that keeps its warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)
