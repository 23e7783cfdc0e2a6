"""Word pools of the stand-in essays, free of RULER's own words (magic, number, hidden)."""

from __future__ import annotations

OPENERS = tuple("The This That Each Every Some Our Their Another Any".split())
DETERMINERS = tuple("the this that each every some our their another any".split())

PEOPLE = tuple(
    """
    baker carpenter teacher sailor farmer painter weaver miller gardener builder reader writer
    editor printer student founder investor engineer mechanic surveyor watchmaker tailor potter
    shepherd fisherman merchant trader clerk judge doctor nurse pilot captain soldier neighbour
    visitor stranger traveller apprentice master owner tenant dancer singer drummer cook brewer
    hunter ranger keeper porter driver guide translator librarian archivist inventor designer
    programmer researcher critic
    """.split()
)

THINGS = tuple(
    """
    ladder hammer kettle lantern basket blanket barrel bucket candle carpet chimney clock compass
    coat copper cradle cupboard curtain drawer engine fence ferry flute furnace gate glove harvest
    hinge jacket jar kite knife ledger letter lever lock loom machine map mirror model motor
    newspaper notebook orchard oven paper parcel pencil pipe plough pocket pump quilt radio
    recipe ribbon roof rope saddle sail saw scarf shelf shovel sketch spoon stove table telescope
    thread ticket tile timber tool towel tray tunnel umbrella vase violin wagon wallet wheel
    whistle window wire  workbench
    """.split()
)

PLACES = tuple(
    """
    village harbour valley market station garden library kitchen workshop theatre museum castle
    bridge river forest island meadow mountain desert city suburb street corner square tower
    cellar attic corridor courtyard farm field stable barn mill quarry mine factory office
    classroom laboratory hospital chapel cottage palace prison port shore beach cliff cave lake
    pond canal road path crossing tavern warehouse shipyard vineyard
    """.split()
)

IDEAS = tuple(
    """
    patience courage curiosity honesty comfort habit hope pride doubt fear fashion taste luck
    talent effort practice memory attention silence freedom justice trust wealth poverty fame
    wisdom progress tradition beauty simplicity ambition boredom discipline surprise failure
    success knowledge ignorance language music science history politics friendship loyalty
    kindness anger envy gratitude leisure labour routine craft design money power risk
    """.split()
)

GROUPS = tuple(
    """
    founders painters readers writers children parents schools companies cities farmers critics
    friends strangers machines markets customers investors hackers students towns nations
    gardens projects ideas mistakes questions habits essays stories plans rules
    """.split()
)

ADJECTIVES = tuple(
    """
    quiet narrow ancient modern broken careful clever cold curious dark deep distant dusty eager
    early empty familiar famous fragile generous gentle golden grand green grey hollow honest
    humble idle large late lazy light little lonely long loud lucky muddy noisy odd old ordinary
    pale patient plain polite poor proud quick rare rough rusty scarlet secret sharp short shy
    silent silver simple slow small smooth soft solid steep stubborn sturdy sudden sweet tall
    tidy tiny tired unfinished useful usual warm weary wet wide wild wise wooden young
    """.split()
)

DID = tuple(
    """
    abandoned admired borrowed bought built carried chose cleaned collected copied counted
    crossed defended delivered described discovered drew examined fixed followed forgot gathered
    guarded hid ignored improved inherited inspected kept lifted lost measured mended moved
    noticed opened packed painted photographed polished praised protected pulled pushed raised
    rebuilt refused remembered repaired replaced rescued restored returned sold shared showed
    sketched sorted studied tested traded visited washed watched weighed
    """.split()
)

HAPPENED = tuple(
    """
    arrived laughed waited slept worked rested wandered smiled listened hesitated agreed
    complained departed failed hurried knocked learned paused played returned shouted sighed
    stayed talked travelled vanished whispered
    """.split()
)

DO = tuple(
    """
    admire avoid believe choose copy cost create destroy discourage encourage explain follow
    forget hide ignore imitate improve invent measure notice overlook prefer produce protect
    punish reward teach trust understand want
    """.split()
)

MODALS = tuple("can could may might must should will would".split())

ADVERBS = tuple(
    """
    quietly slowly carefully gladly often seldom always never usually rarely suddenly quickly
    softly twice early late together alone again anyway badly calmly eagerly gently openly
    politely proudly sadly warmly well
    """.split()
)

PREPOSITIONS = tuple(
    "near behind beside below above inside outside across beyond around under past toward".split()
)

TIMES = tuple(
    """
    morning evening winter summer autumn spring afternoon week month year decade century holiday
    storm war festival season night
    """.split()
)

LINKERS = tuple("and but so because although while unless until since".split())

LEADS = tuple(
    "Perhaps Sometimes Meanwhile Eventually Afterwards Instead Still Then Indeed Later".split()
)
