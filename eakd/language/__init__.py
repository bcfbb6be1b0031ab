"""Language: causal language models taught by larger ones, answer by answer.

transformers is imported inside functions: ``import eakd`` stays quick, and needs none.
"""
