"""What tests run annotations through: beartype, which here takes whole numbers for floats, as Python's typing does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
