"""What training and serving share: the schema, ids, vocabularies, the encode function and the batch.

Nothing here imports torch, and nothing here imports another room of ours, so that a serving process
encodes a request with exactly the code that encoded the training data.
"""

from towers.features.batch import Batch
from towers.features.encoding import FeatureInfo
from towers.features.featurizer import Featurizer, share_vocabularies
from towers.features.ids import IdMap
from towers.features.ragged import Ragged
from towers.features.schema import Action, Feature, Kind, Schema
from towers.features.sentences import Encoders, TextEncoder, open_encoder
from towers.features.vocabulary import FIRST, MISSING, OOV, PAD, StoredVocabulary, Vocabulary

__all__ = [
    "FIRST",
    "MISSING",
    "OOV",
    "PAD",
    "Action",
    "Batch",
    "Encoders",
    "Feature",
    "FeatureInfo",
    "Featurizer",
    "IdMap",
    "Kind",
    "Ragged",
    "Schema",
    "StoredVocabulary",
    "TextEncoder",
    "Vocabulary",
    "open_encoder",
    "share_vocabularies",
]
