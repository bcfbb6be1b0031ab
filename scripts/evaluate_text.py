"""ROUGE-L of a language model's answers on the test sets of the language tables."""

from eakd.commands import evaluate_text

if __name__ == "__main__":
    evaluate_text()
