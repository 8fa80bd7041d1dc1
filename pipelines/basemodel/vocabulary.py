"""Words that the synthetic language is made of. Each list's last fifth is kept for measuring, never trained on."""

from __future__ import annotations

PRODUCTS = (
    "pump", "kettle", "heat pump", "inverter", "dishwasher", "router", "desk lamp", "espresso machine", "air purifier",
    "drill", "water filter", "e-bike", "freezer", "thermostat", "projector", "scanner", "compressor", "boiler",
    "lawn mower", "ventilation unit", "charging station", "battery pack", "label printer", "smoke detector", "tent",
    "vacuum cleaner", "sewing machine", "solar panel", "3D printer", "gearbox", "crane", "conveyor", "valve", "scale",
    "welding set", "chainsaw", "microscope", "turntable", "headset", "drone", "generator", "oven", "dehumidifier",
    "stroller", "treadmill", "telescope", "server rack", "tablet", "safe", "hand dryer",
)  # fmt: skip

PARTS = (
    "filter", "gasket", "power supply", "display", "motor", "seal", "fan", "battery", "sensor", "hose", "cable", "lid",
    "control board", "pump head", "drive belt", "heating element", "wheel", "handle", "nozzle", "valve seat", "bearing",
    "fuse", "blade", "lens", "cartridge", "impeller", "spring", "hinge", "antenna", "relay",
)  # fmt: skip

MATERIALS = (
    "stainless steel", "aluminium", "brass", "cast iron", "polycarbonate", "nylon", "rubber", "ceramic", "glass",
    "carbon fibre", "oak", "bamboo", "copper", "titanium", "polypropylene", "silicone", "bronze", "zinc", "cork",
    "wool",
)  # fmt: skip

COLOURS = (
    "white", "black", "silver", "dark grey", "red", "light blue", "green", "beige", "orange", "yellow", "dark green",
    "brown", "violet", "turquoise", "ivory",
)  # fmt: skip

TRADES = (
    "logistics", "medical devices", "insurance", "steel", "furniture", "software", "renewable energy", "food packaging",
    "textiles", "robotics", "water treatment", "travel", "accounting", "chemicals", "agriculture", "education",
    "construction", "shipbuilding", "payments", "printing", "toys", "optics", "security", "recycling", "gaming",
)  # fmt: skip

TOPICS = (
    "returns", "refunds", "expenses", "remote work", "holidays", "sick leave", "passwords", "visitors", "travel",
    "parking", "data retention", "invoices", "overtime", "training", "shipping", "warranty claims", "repairs",
    "subscriptions", "vendor checks", "incident reports", "backups", "parental leave", "company cars", "gifts",
    "access badges",
)  # fmt: skip

PEOPLE_WORDS = (
    "customer", "employee", "manager", "supplier", "technician", "buyer", "driver", "visitor", "tenant", "member",
    "patient", "student", "reviewer", "owner", "dealer",
)  # fmt: skip

ROLES = (
    "chief executive", "head of sales", "support lead", "plant manager", "data protection officer", "buyer", "founder",
    "head of research", "account manager", "chief engineer", "office manager", "quality manager", "press contact",
    "treasurer", "works council chair",
)  # fmt: skip

ROOMS = ("meeting room", "warehouse", "laboratory", "canteen", "server room", "office", "workshop", "lobby", "archive")

CODE_WORDS = (
    "user", "order", "index", "cache", "price", "token", "config", "queue", "report", "session", "batch", "file",
    "row", "image", "account", "event", "stock", "mail", "path", "limit", "sync", "label", "parser", "chunk", "store",
)  # fmt: skip

CODE_VERBS = (
    "load", "parse", "update", "delete", "merge", "send", "read", "write", "check", "build", "fetch", "close", "retry",
    "sort", "count", "split", "lock", "flush", "render", "export",
)  # fmt: skip

PROBLEMS = (
    "the file is never closed", "the loop runs one step too far", "an empty list is not handled",
    "the password is written to the log", "the error is swallowed", "the lock is not released on failure",
    "the query is built by joining strings", "the default argument is mutable", "the time zone is ignored",
    "the result is never checked", "two threads share the counter", "the index may be negative",
    "the connection is opened in the loop", "the name shadows a builtin", "the comparison uses is instead of ==",
)  # fmt: skip

REMEDIES = (
    "use a with block", "stop one step earlier", "return early when it is empty", "leave it out of the message",
    "raise it again", "release it in a finally block", "pass the values as parameters", "use None as the default",
    "store times in UTC", "test the return value", "guard it with a lock", "check the bounds first",
    "open it once before the loop", "give it another name", "compare the values",
)  # fmt: skip

QUALITIES = (
    "quiet", "compact", "robust", "light", "easy to clean", "simple to install", "made for daily use", "repairable",
    "suited to small workshops", "popular with beginners", "built for outdoor use", "tested for ten years of service",
    "sold in three sizes", "delivered assembled", "meant for professionals",
)  # fmt: skip

FILLERS = (
    "Please read the manual before first use.", "The information on this page is checked every month.",
    "All figures are nominal values.", "Keep this page for later.", "Prices include tax.",
    "Changes are announced early.",
    "Further details are available on request.", "This page replaces all earlier versions.",
    "Values can differ slightly between batches.", "Ask the team if anything is unclear.",
    "The overview below lists the most important points.", "Older versions are kept in the archive.",
    "Nothing else changes.", "The rules apply to all sites.", "Spare parts are kept in stock.",
)  # fmt: skip

CITIES_START = (
    "Nor", "Al", "Bran", "Kel", "Ost", "Mar", "Vel", "Tor", "Hal", "Lin", "Grau", "Sand", "Ber", "Wes", "Cal", "Dun",
    "Esk", "Fal", "Gol", "Hol", "Ing", "Jor", "Kar", "Lor", "Mun",
)  # fmt: skip
CITIES_END = (
    "ham", "burg", "stad", "ville", "ford", "mouth", "dorf", "by", "field", "haven", "wick", "bridge", "ton", "au",
    "holm",
)  # fmt: skip
FIRST_NAMES = (
    "Anna", "Boris", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Luis", "Mona",
    "Nils", "Olga", "Pavel", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wanda", "Xenia", "Yusuf", "Zoe",
    "Amir", "Bella", "Chen", "Dora",
)  # fmt: skip
ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu", "r",
    "s", "st", "t", "tr", "v", "w", "z",
)  # fmt: skip
NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou", "y")
CODAS = ("", "", "", "l", "n", "r", "s", "t", "x", "m", "nd", "ck", "rt")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

ATTRIBUTE_NOUNS = (
    "range", "accuracy", "life", "supply", "protection", "size", "output", "input", "interval", "rate", "speed", "load",
    "depth", "reach", "channel", "memory", "storage", "response", "mode", "mount", "thread", "diameter", "volume",
    "current", "frequency", "resolution", "threshold", "alarm", "signal", "radio", "connection", "port", "interface",
    "battery", "housing", "material", "finish", "number", "class", "type", "grade", "limit", "period", "discount",
    "price", "deposit", "level", "time", "date", "term", "charge", "share", "owner", "contact", "address", "country",
    "language", "format", "version", "plan", "method", "test", "standard", "approval", "drift", "delay", "tolerance",
    "weight", "length", "width", "height", "temperature", "humidity", "pressure", "sensor", "display", "cable", "plug",
    "key", "lamp", "tone", "colour", "warranty", "replacement",
)  # fmt: skip
ATTRIBUTE_WORDS = (
    "first", "second", "inner", "outer", "upper", "lower", "main", "spare", "daily", "yearly", "monthly", "usual",
    "largest", "smallest", "longest", "shortest", "highest", "lowest", "early", "late", "free", "extra", "basic",
    "full", "indoor", "outdoor", "winter", "summer", "night", "travel", "repair", "return", "order", "shipping",
    "service", "trial", "battery", "water", "air", "power", "screen", "motor", "pump", "valve", "cable", "sensor",
    "radio", "data", "user", "guest", "team", "storage", "working", "rated", "nominal", "peak", "total", "average",
    "minimum", "maximum",
)  # fmt: skip
SECTIONS = (
    "Specifications", "Overview", "Data", "Technical data", "Details", "Facts", "Terms", "Prices and payment", "Limits",
    "Installation", "Compatibility", "Service", "Delivery", "Warranty", "Numbers", "In detail", "Conditions", "Profile",
    "Notes", "Background", "What is included", "How it works", "Questions", "Scope", "At a glance",
)  # fmt: skip
UNITS = (
    "mm", "cm", "m", "km", "g", "kg", "t", "W", "kW", "kWh", "V", "A", "mA", "Hz", "kHz", "GHz", "hPa", "bar", "%",
    "per cent", "°C", "m/s", "km/h", "l/min", "litres", "ml", "µg/m³", "W/m²", "lux", "dB", "dBm", "N·m", "ppm", "days",
    "weeks", "months", "years", "hours", "minutes", "seconds", "euros", "EUR", "devices", "people", "pieces", "metres",
    "lines", "working days", "MB", "GB",
)  # fmt: skip
WORDS = (
    "above", "across", "after", "air", "all", "along", "around", "at night", "away from heat", "battery",
    "behind glass", "below ground", "beside", "between walls", "black", "blue", "board", "bolts", "both sides",
    "bottom", "box", "brass", "bright", "bus", "button", "by cable", "by hand", "by post", "by request", "camera",
    "cap", "carton", "ceiling", "cell", "chain", "channel", "charger", "clamp", "clean", "clear", "clip", "closed",
    "cloth", "cloud", "coated", "cold", "copper", "corner", "cotton", "cover", "cup", "current", "curve", "customers",
    "dark", "dealer", "deep", "door", "double", "drawer", "dry", "dust", "early", "earth", "edge", "electric", "empty",
    "end", "every year", "extra", "face", "factory", "fast", "felt", "field", "fine", "fire", "first", "fixed", "flat",
    "flow", "foam", "foil", "fold", "for free", "for schools", "frame", "free of charge", "fresh", "from the front",
    "full", "garden", "gas", "gate", "gear", "gel", "green", "grey", "ground", "guests", "half", "hall", "hand", "hard",
    "heat", "heavy", "high", "hole", "hot", "house", "ice", "in advance", "in summer", "in total", "indoors", "inlet",
    "inside", "iron", "kitchen", "large", "laser", "last", "late", "layer", "lead", "leaf", "left", "level", "light",
    "line", "lock", "long", "loop", "loose", "loud", "low", "magnet", "mains", "map", "mark", "mast", "mesh", "metal",
    "mild", "mirror", "mobile", "more", "mould", "narrow", "near", "new", "no tools", "noise", "north", "oil", "old",
    "on demand", "once a day", "one way", "open", "orange", "outdoors", "outlet", "outside", "oval", "over the network",
    "paint", "panel", "paper", "parts", "peak", "pin", "pipe", "plain", "plastic", "plate", "plug", "point", "pole",
    "pond", "power", "print", "probe", "public", "pulse", "quick", "quiet", "rain", "ready", "red", "remote", "repair",
    "resin", "rest", "return", "ring", "road", "roof", "room", "rope", "round", "row", "safe", "sand", "screen",
    "screw", "sealed", "second", "shade", "shell", "short", "side", "silver", "single", "slow", "small", "smoke",
    "snow", "soft", "soil", "solid", "south", "spare", "spring", "square", "stable", "stack", "staff", "stand", "steel",
    "stone", "strap", "strong", "sun", "supplied", "switch", "table", "tank", "tape", "team", "thick", "thin", "tight",
    "timber", "top", "tower", "track", "trade", "tray", "tree", "triple", "tube", "turn", "twice a week", "under load",
    "until noon", "user", "vent", "wall", "warm", "water", "wave", "week", "well", "west", "wet", "wheel", "white",
    "wide", "wind", "window", "winter", "wire", "with care", "with notice", "with screws", "without fog", "wood",
    "worker", "yard", "yellow", "yes", "zone",
)  # fmt: skip
SMALL_WORDS = (
    "a", "about", "again", "always", "am", "an", "and", "any", "are", "as", "asked", "away", "back", "be", "because",
    "been", "best", "better", "between", "both", "bring", "but", "by", "call", "came", "can", "come", "could", "day",
    "dear", "did", "do", "done", "down", "each", "even", "ever", "every", "far", "few", "find", "for", "friend", "from",
    "get", "give", "go", "good", "had", "has", "have", "he", "her", "here", "him", "his", "how", "if", "in", "into",
    "is", "it", "just", "kind", "know", "last", "less", "let", "like", "little", "look", "made", "make", "many", "me",
    "more", "most", "much", "must", "my", "never", "next", "no", "not", "nothing", "now", "of", "off", "on", "once",
    "one", "only", "or", "other", "our", "out", "over", "people", "perhaps", "please", "quite", "rather", "read",
    "really", "said", "same", "say", "see", "she", "should", "since", "so", "some", "soon", "still", "such", "take",
    "than", "that", "the", "their", "them", "then", "there", "these", "they", "thing", "think", "this", "those",
    "though", "time", "to", "today", "together", "too", "true", "two", "under", "until", "up", "us", "use", "very",
    "wait", "want", "was", "way", "we", "were", "while", "why", "will", "with", "without", "word", "work", "would",
    "write", "year", "yes", "yet", "you", "your",
)  # fmt: skip
