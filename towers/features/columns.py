"""The one door for column names inside Towers.

Raw logs may call their columns what they like; a data config maps them to these names, and below the
reader nothing else is used.
"""

USER = "user"  # external user id, int64 or string
ITEM = "item"  # external item id, int64 or string
TIME = "time"  # event time, microseconds since the epoch, UTC
ACTION = "action"  # what the user did: one of the schema's actions
WEIGHT = "weight"  # label weight of an example
STAGE = "stage"  # of an event in the history log: 0 train, 1 valid, 2 every test split
SPLIT = "split"  # name of the split an example belongs to

USER_ROW = "user_row"  # row of users.parquet
ITEM_ROW = "item_row"  # row of items.parquet
CONTEXT_ROW = "context_row"  # row of contexts.parquet; 0 where nothing is given
HISTORY_END = "history_end"  # how many events of the user's history the example may see, the oldest first
POSTED = "posted"  # from when an item may be recommended; null: always
EXPIRES = "expires"  # until when (exclusive) an item may be recommended; null: for ever
EVENTS = "events"  # positive training events of a user, an item or a context
GROUP = "group"  # items of one group are reposts of each other
RANK = "rank"  # 1 is best
SCORE = "score"  # similarity of the trained model
VALUE, ID, COUNT = "value", "id", "count"  # columns of a vocabulary file

FEATURE_PREFIX = "f."  # encoded feature columns of users.parquet, items.parquet and contexts.parquet
ATTRIBUTE_PREFIX = "a."  # raw filter and display columns of items.parquet
