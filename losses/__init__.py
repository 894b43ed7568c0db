"""Training objectives, one pure function a file: sentence log-probabilities or embeddings in, losses out."""

from sempa.losses.all_pairs_infonce import all_pairs_infonce_loss
from sempa.losses.anchor import nll_per_token
from sempa.losses.conservative_dpo import conservative_dpo_loss
from sempa.losses.displacement import ches_score
from sempa.losses.dpo import dpo_loss
from sempa.losses.embedding_infonce import embedding_infonce_loss
from sempa.losses.infonce import infonce_loss, positive_first
from sempa.losses.ipo import ipo_loss
from sempa.losses.isotropy import isotropy_loss
from sempa.losses.plackett_luce import plackett_luce_loss
from sempa.losses.sparse import spod_loss
from sempa.losses.uniformity import uniformity_loss

__all__ = [
    "all_pairs_infonce_loss",
    "ches_score",
    "conservative_dpo_loss",
    "dpo_loss",
    "embedding_infonce_loss",
    "infonce_loss",
    "ipo_loss",
    "isotropy_loss",
    "nll_per_token",
    "plackett_luce_loss",
    "positive_first",
    "spod_loss",
    "uniformity_loss",
]
