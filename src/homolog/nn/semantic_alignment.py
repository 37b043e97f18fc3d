"""CASA: both branches are asked the same questions, and must answer alike."""

from __future__ import annotations

from torch import Tensor, nn

from homolog.losses.precision import full_precision


class SemanticAlignment(nn.Module):
    """Conditional anatomical semantic alignment: what the visible tokens read out.

    The visible tokens of a masked crop are the queries; keys and values are tokens of
    the online or of the target branch. Both branches share all weights, so two equal
    sets of tokens give equal answers.

    Args:
        query_features: E_v, features of the encoder's visible tokens.
        token_features: E_h, features of the projected tokens.
        dim: C, width inside and of the answer.

    Source: Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for
    Self-supervised Learning in 3D Medical Image Analysis", ICCV 2023 (Alice), Eq. 3-4.
    Differs from the published code: one head, no residual from the query (both answers
    would share it and be alike for free), no feed-forward layer; as the paper has it.
    """

    def __init__(self, query_features: int, token_features: int, dim: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(query_features)
        self.token_norm = nn.LayerNorm(token_features)
        self.query = nn.Linear(query_features, dim, bias=False)
        self.key = nn.Linear(token_features, dim, bias=False)
        self.value = nn.Linear(token_features, dim, bias=False)
        self.answer = nn.Linear(dim, dim)

    def forward(self, visible: Tensor, tokens: Tensor) -> Tensor:
        """Visible tokens (B, n, E_v) and tokens (B, N, E_h) -> answers (B, n, C)."""
        queries = self.query(self.query_norm(visible))
        tokens = self.token_norm(tokens)
        weights = attention(queries, self.key(tokens))
        answers: Tensor = self.answer(_read(weights, self.value(tokens)))
        return answers


@full_precision
def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Softmax of q . k / sqrt(C): (B, n, C), (B, N, C) -> (B, n, N), rows sum to 1."""
    scores: Tensor = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores.softmax(-1)


@full_precision
def _read(weights: Tensor, values: Tensor) -> Tensor:
    return weights @ values
