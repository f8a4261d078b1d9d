import sys

from tests.generic.descriptors import FAMILIES, freeze

for family in sys.argv[1:] or FAMILIES:
    freeze(family)
