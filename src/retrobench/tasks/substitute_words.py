"""Words of the substitute essays, by slot of a sentence. RULER's own words are not among them.

RULER's own words are those of its needles: magic, number, hidden.
"""

from __future__ import annotations

_WORDS = {
    "DET": "the this that each every some our their another any",
    "WHO": """
        baker carpenter teacher sailor farmer painter weaver miller gardener builder reader
        writer editor printer student founder investor engineer mechanic surveyor watchmaker
        tailor potter shepherd fisherman merchant trader clerk judge doctor nurse pilot captain
        soldier neighbour visitor stranger traveller apprentice master owner tenant dancer
        singer drummer cook brewer hunter ranger keeper porter driver guide translator librarian
        archivist inventor designer programmer researcher critic
    """,
    "WHAT": """
        ladder hammer kettle lantern basket blanket barrel bucket candle carpet chimney clock
        compass coat copper cradle cupboard curtain drawer engine fence ferry flute furnace gate
        glove harvest hinge jacket jar kite knife ledger letter lever lock loom machine map
        mirror model motor newspaper notebook orchard oven paper parcel pencil pipe plough
        pocket pump quilt radio recipe ribbon roof rope saddle sail saw scarf shelf shovel
        sketch spoon stove table telescope thread ticket tile timber tool towel tray tunnel
        umbrella vase violin wagon wallet wheel whistle window wire workbench
    """,
    "WHERE": """
        village harbour valley market station garden library kitchen workshop theatre museum
        castle bridge river forest island meadow mountain desert city suburb street corner
        square tower cellar attic corridor courtyard farm field stable barn mill quarry mine
        factory office classroom laboratory hospital chapel cottage palace prison port shore
        beach cliff cave lake pond canal road path crossing tavern warehouse shipyard vineyard
    """,
    "IDEA": """
        patience courage curiosity honesty comfort habit hope pride doubt fear fashion taste
        luck talent effort practice memory attention silence freedom justice trust wealth
        poverty fame wisdom progress tradition beauty simplicity ambition boredom discipline
        surprise failure success knowledge ignorance language music science history politics
        friendship loyalty kindness anger envy gratitude leisure labour routine craft design
        money power risk
    """,
    "MANY": """
        founders painters readers writers children parents schools companies cities farmers
        critics friends strangers machines markets customers investors hackers students towns
        nations gardens projects ideas mistakes questions habits essays stories plans rules
    """,
    "ADJ": """
        quiet narrow ancient modern broken careful clever cold curious dark deep distant dusty
        eager early empty familiar famous fragile generous gentle golden grand green grey hollow
        honest humble idle large late lazy light little lonely long loud lucky muddy noisy odd
        old ordinary pale patient plain polite poor proud quick rare rough rusty scarlet secret
        sharp short shy silent silver simple slow small smooth soft solid steep stubborn sturdy
        sudden sweet tall tidy tiny tired unfinished useful usual warm weary wet wide wild wise
        wooden young
    """,
    "DID": """
        abandoned admired borrowed bought built carried chose cleaned collected copied counted
        crossed defended delivered described discovered drew examined fixed followed forgot
        gathered guarded hid ignored improved inherited inspected kept lifted lost measured
        mended moved noticed opened packed painted photographed polished praised protected
        pulled pushed raised rebuilt refused remembered repaired replaced rescued restored
        returned sold shared showed sketched sorted studied tested traded visited washed watched
        weighed
    """,
    "WENT": """
        arrived laughed waited slept worked rested wandered smiled listened hesitated agreed
        complained departed failed hurried knocked learned paused played returned shouted sighed
        stayed talked travelled vanished whispered
    """,
    "DO": """
        admire avoid believe choose copy cost create destroy discourage encourage explain follow
        forget hide ignore imitate improve invent measure notice overlook prefer produce protect
        punish reward teach trust understand want
    """,
    "MODAL": "can could may might must should will would",
    "ADV": """
        quietly slowly carefully gladly often seldom always never usually rarely suddenly
        quickly softly twice early late together alone again anyway badly calmly eagerly gently
        openly politely proudly sadly warmly well
    """,
    "PREP": "near behind beside below above inside outside across beyond around under past toward",
    "TIME": """
        morning evening winter summer autumn spring afternoon week month year decade century
        holiday storm war festival season night
    """,
    "LINK": "and but so because although while unless until since",
    "LEAD": "Perhaps Sometimes Meanwhile Eventually Afterwards Instead Still Then Indeed Later",
}
POOLS = {slot: tuple(words.split()) for slot, words in _WORDS.items()}
POOLS["OPEN"] = tuple(word.capitalize() for word in POOLS["DET"])
POOLS["IDEA_CAP"] = tuple(word.capitalize() for word in POOLS["IDEA"])
"""Slot -> words that may fill it. ``OPEN`` and ``IDEA_CAP`` open a sentence."""
