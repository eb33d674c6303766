"""Makes Inter-Regular-subset.ttf and the list of its characters from the Inter-Regular.woff2 of npm `inter-ui` 4.1.1. Needs fonttools and brotli.

    python subset.py package/web/Inter-Regular.woff2 Inter-Regular-subset.ttf characters.txt
"""

import sys

from fontTools import subset
from fontTools.ttLib import TTFont

RANGES = (
    "20-7E A0-17F 192 2C6-2DD 370-3FF 400-45F 2010-2015 2018-201E 2020-2022 2026 2030 2032 2033 2039 203A 2070-208E "
    "20AC 2122 2190-2195 2202 2206 220F 2211 2212 221A 221E 222B 2248 2260 2264 2265 25CF 25CB 2713 2717 25A1"
)


def characters():
    for part in RANGES.split():
        first, _, last = part.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def tabular(font):
    """Glyph of each digit whose advance is that of all others: the single substitutions of `tnum`."""
    table = font["GSUB"].table
    lookups = {i for f in table.FeatureList.FeatureRecord if f.FeatureTag == "tnum" for i in f.Feature.LookupListIndex}
    pairs = {}
    for i in sorted(lookups):
        for sub in table.LookupList.Lookup[i].SubTable:
            pairs.update(getattr(sub, "ExtSubTable", sub).mapping)
    return pairs


def main(source, target, listing):
    options = subset.Options()
    options.hinting, options.desubroutinize = False, True
    options.layout_features = ["kern", "mark", "mkmk", "ccmp", "locl", "tnum"]
    options.drop_tables += ["DSIG", "meta"]
    options.name_IDs = [0, 1, 2, 3, 4, 5, 6, 13, 14]
    font = TTFont(source, recalcTimestamp=False)
    font.flavor = None
    # Digits of one width, so that the numbers of a column stand below each other: the SVG renderer has no `tnum`.
    even = tabular(font)
    for cmap in font["cmap"].tables:
        for digit in range(0x30, 0x3A):
            if digit in cmap.cmap:
                cmap.cmap[digit] = even.get(cmap.cmap[digit], cmap.cmap[digit])
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=list(characters()))
    subsetter.subset(font)
    font.save(target)
    with open(listing, "w", encoding="utf-8") as file:
        file.write("".join(map(chr, sorted(font.getBestCmap()))))


main(*sys.argv[1:])
