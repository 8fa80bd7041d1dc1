"""Sentences of the synthetic language with gaps: ``{a}`` an attribute, ``{s}`` its subject, ``{v}`` its value.

With a capital the gap begins a sentence. Of lists that whole sentences are drawn from, the last fifth is kept for
measuring; what is put together at random is put together for training alone.
"""

from __future__ import annotations

OTHER_PROMPTS = (
    "Answer from the text below.\n\n{context}\n\n{question}",
    "Information:\n\n{context}\n\n{question}",
    "Read this first.\n\n{context}\n\nNow answer: {question}",
    "{context}\n\nQuestion: {question}\nAnswer from the text above.",
    "Documents:\n\n{context}\n\nUse them to answer. {question}",
)
SYSTEMS = (
    "",
    "",
    "You answer questions of customers.",
    "You are a careful assistant.",
    "Answer in one sentence.",
    "You help the staff of {company}.",
    "You answer from documents only. If they do not say it, say that you do not know.",
    "Be brief and correct.",
)
STATEMENTS = (
    "The {a} of {s} is {v}.",
    "- {A}: {v}",
    "{A}: {v}",
    "{S} has a {a} of {v}.",
    "| {A} | {v} |",
    "{S}: {a} {v}.",
    "With {s}, the {a} is {v}.",
    "Its {a} is {v}.",
    "- {a}: **{v}**",
    "The {a} is {v}.",
    "For {s} the {a} was set to {v}.",
    "* {A} = {v}",
    "We list {v} as the {a} of {s}.",
    "At {v}, the {a} is what it was last year.",
    "{A} - {v}",
    "**{A}** {v}",
    "The {a} stands at {v}.",
    "The {a}, {v}, has not changed.",
    "{S} is listed with a {a} of {v}.",
    "- The {a} of {s}: {v}",
    "The {a} was changed to {v}.",
    "Since the last update, the {a} of {s} has been {v}.",
    "{v} is the {a} of {s}.",
    "Its {a}: {v}.",
    "Under {a} we have {v}.",
    "{A}; {v}",
    "1. {A}: {v}",
    "The data give {v} for the {a}.",
    "There is a {a} of {v}.",
    "What is known of the {a}: {v}.",
    "{A} is {v}, no more and no less.",
    "In this case the {a} amounts to {v}.",
    "Here, the {a} is given as {v}.",
    "[{a}] {v}",
    "We have agreed on {v} for the {a}.",
    "{A} of {s}: {v}.",
    "As its {a}, {s} has {v}.",
    "The new {a} of {s} reads {v}.",
    "{S} shows {v} for {a}.",
    "{A}: now {v}",
    "{A} ({s}): {v}.",
    "As for the {a} of {s}, it is {v}.",
    "We give the {a} of {s} as {v}.",
    "The {a} has been {v} so far.",
    "- {A} is {v}",
    "{A} -> {v}",
    "{S} now has {v} as its {a}.",
    "For the {a}, {v} holds.",
    "Of {s} the {a} is known: {v}.",
    "# {A}\n{v}",
)
WHAT = ("the {a}", "the {a}", "{a}", "its {a}", "a {a}", "our {a}", "this {a}", "any {a}", "the same {a}")
WHERE = (
    "", "", "", " of {s}", " of {s}", " of {s}", " for {s}", " in {s}", " with {s}", " on {s}", " at {s}", " ({s})",
    " by {s}", ", {s},",
)  # fmt: skip
LINKS = (
    " is", " is", " was", " reads", " comes to", " equals", " remains", " stays", " runs to", " makes", " means",
    " became", " turned out to be", " should be", " will be", " can be", " must be", " may be", " is now",
    " was once", " is set at", " is put at", " is fixed to", " was found to be", " is said to be", " had been",
    " is still", " gives", " shows", " says", " goes with", " lies at", " sits at", " starts with", " ends with",
    " went to", " has become", " did not leave", " keeps to", " calls for", ":", ":", ": about", " =", " -", " --",
    " ==", " |", " /", " ~", " ...", " >", " (now):", " was changed to", " rose to", " fell to",
)  # fmt: skip
"""What stands between an attribute and its value, where statements are put together at random."""
LINKS_BACK = (
    "is", "was", "makes", "counts as", "gives", "will be", "became", "remains", "stands under", "goes as",
    "was taken as", "is written under", "is meant by", "was chosen as", "can be read under", "belongs to", "|", "=",
)  # fmt: skip
HOLDS = (
    "has", "had", "gets", "offers", "takes", "needs", "comes with", "keeps", "names", "carries", "brings", "states",
    "uses", "claims", "got", "gave", "reports", "lists", "wants", "asks for", "is sold with", "works with",
)  # fmt: skip
LISTS = (
    "- {A}: {v}", "- {A}: {v}", "- {A}: {v}", "{A}: {v}", "| {A} | {v} |", "* {A}: {v}", "- {A} - {v}", "{A}: {v}.",
)  # fmt: skip
"""How every fact of a text is written where it is a list."""
STATEMENT_FRAMES = (
    "{x}",
    "{x}",
    "{x}",
    "{x}",
    "{x}",
    "Please note: {x}",
    "Good to know: {x}",
    "{x} This was checked again.",
    "{x} We were asked this often.",
    "In short: {x}",
    "{x} That is all there is to say.",
    "News: {x}",
    "{x} More on the next page.",
    "Update. {x}",
    "{x} Nobody has complained.",
    "Reminder: {x}",
    "Important: {x}",
    "{x} The maker has confirmed it.",
    "Often asked: {x}",
    "{x} See also the list below.",
)
QUESTIONS = (
    "What is the {a} of {s}?",
    "What {a} does {s} have?",
    "Tell me the {a} of {s}.",
    "I need the {a} of {s}.",
    "{S}: what is the {a}?",
    "Which {a} does {s} have?",
    "Do you know the {a} of {s}?",
    "What about the {a} of {s}?",
    "Please give me the {a} of {s}.",
    "{A} of {s}?",
    "What is known about the {a} of {s}?",
    "I am looking for the {a} of {s}.",
    "What's the {a} of {s}?",
    "What's the {a} for {s}?",
    "What is the {a} for {s}?",
    "Does {s} have a {a}, and what is it?",
    "Could you tell me the {a} of {s}?",
    "Could you check the {a} of {s} for me?",
    "I want to know the {a} of {s}.",
    "Where does the {a} of {s} stand?",
    "Let me know the {a} of {s}.",
    "About {s}: which {a} is given?",
    "How about {s} and its {a}?",
    "My question is about the {a} of {s}.",
    "What do you have for {s} under {a}?",
    "Is there a {a} for {s}?",
    "Who can tell me the {a} of {s}?",
    "Name the {a} of {s}.",
    "State the {a} of {s}.",
    "Find the {a} of {s}.",
    "Look for the {a} of {s}, please.",
    "I have forgotten the {a} of {s}.",
    "I was asked for the {a} of {s}.",
    "For {s}, what is the {a}?",
    "With {s}, what is the {a}?",
    "What would be the {a} of {s}?",
    "What should I write down as the {a} of {s}?",
    "{S} - {a}?",
    "Give the {a} of {s}.",
    "What {a} is given for {s}?",
    "What {a} is listed for {s}?",
    "Can I have the {a} of {s}?",
    "May I ask for the {a} of {s}?",
    "I cannot find the {a} of {s}.",
    "Is the {a} of {s} known?",
    "And the {a} of {s}?",
    "What was the {a} of {s} again?",
    "Show me the {a} of {s}.",
    "Can you look up the {a} of {s}?",
    "What does it say about the {a} of {s}?",
    "How is the {a} of {s} stated?",
    "Do we know which {a} {s} has?",
    "Regarding {s}, what is its {a}?",
    "I would like to learn the {a} of {s}.",
    "Has {s} got a {a}, and which?",
    "Say what the {a} of {s} is.",
    "Which is the {a} of {s}?",
    "What have you got as the {a} of {s}?",
    "Do tell me about the {a} of {s}.",
    "The {a} of {s} is what?",
)
WOULD_YOU = (
    "", "", "please ", "would you ", "will you ", "kindly ", "let us ", "I must ask you to ", "we want to ",
    "they need to ", "she asked me to ", "help me ", "you could ", "somebody should ", "it is time to ", "try to ",
    "do you mind if I ", "I came here to ", "he wants you to ", "may we ", "I would rather ", "you ought to ",
)  # fmt: skip
TELL = (
    "tell me", "give me", "name", "send me", "explain", "confirm", "repeat", "write down", "read out", "list",
    "recall", "find out", "check", "share", "note", "quote", "spell out", "describe", "report", "get", "see", "hear",
    "learn", "know", "remember", "print", "bring up", "point me to", "look at", "go over", "put down", "verify",
    "talk about", "mention", "return", "copy", "compare", "answer with",
)  # fmt: skip
WHICH = (
    "what",
    "what",
    "what",
    "which",
    "how",
    "where",
    "so what",
    "now what",
    "who knows what",
    "and what",
    "then what",
)
WOULD_BE = (
    "is", "is", "was", "are", "would be", "could be", "might be", "should be", "may be", "will be", "were",
    "do you call", "makes", "do you have for", "did they say of", "do we write for", "happens to be", "counts as",
    "did you find for",
)  # fmt: skip
BY_NOW = ("", "", "", "", " now", " today", " at present", " these days", " then", " exactly", " by now", " at last")
ABOUT = (
    "What about {p}?", "How is it with {p}?", "What do you say about {p}?", "Tell me about {p}.",
    "{p}: what is the rule?", "What holds for {p}?", "What is written about {p}?", "Is there a rule on {p}?",
    "What must I know about {p}?", "How do you handle {p}?",
)  # fmt: skip
VERBS = (
    "is paid back", "has to be sent", "is kept", "can be changed", "is free of charge", "is checked", "ends",
    "is closed", "is repaired", "may be returned", "is answered", "costs nothing", "is blocked",
    "must be reported", "is charged",
)  # fmt: skip
TERMS = ("within", "after", "for", "up to", "before", "from", "every", "at", "above", "below")
HEADERS = (
    "Name", "Figure", "Item", "Data", "Job", "Price", "Plan", "Limit", "Region", "Time", "Part", "Note", "Step",
    "Entry",
)  # fmt: skip
QUESTION_FRAMES = (
    "{q}",
    "{q}",
    "{q}",
    "{q}",
    "{q}",
    "Hello. {q}",
    "Hi! {q}",
    "Quick question: {q}",
    "{q} Thanks.",
    "{q} I could not find it.",
    "A customer wants to know: {q}",
    "One more thing. {q}",
    "{q} Please be exact.",
    "For my notes: {q}",
    "I am writing an offer. {q}",
    "{q} It is urgent.",
    "Sorry to ask again. {q}",
    "Good morning. {q}",
    "I have read all of it and still wonder. {q}",
    "{q} My manager asked me.",
    "Next: {q}",
    "{q} That is all.",
    "We are comparing some of them. {q}",
    "{q} I need it for the order.",
    "Dear team, {q}",
    "I hope you are well. {q}",
    "{q} Best wishes.",
    "Can you help me? {q}",
    "{q} I would be glad to hear from you.",
    "Just to be sure: {q}",
    "It is about an old order of ours. {q}",
    "{q} A short answer is enough.",
)
ANSWER = "The {a} of {s} is {v}."
REMARKS = (
    "I {did} {s}.", "I {did} {s}: {n}.", "My {n} {did} {s}.", "We {did} {s} and {did} it again.", "{S} {did} us.",
    "{n}. I {did} {s}.", "Somebody {did} {s} {n}.", "Could you {do} {s}?", "Please {do} {s}, {n}.",
    "I want to {do} {s}.", "We will {do} {s} {n}.", "Never {do} {s}!", "They {did} {s}, and {n}.", "May I {do} {s}?",
    "It was {n} when I {did} {s}.", "Hello.", "Thanks, that is all.", "{n}!", "Good morning, {n}.", "Let us {do} {s}.",
)  # fmt: skip
DID = (
    "bought", "sold", "lost", "dropped", "opened", "borrowed", "painted", "ordered", "moved", "found", "broke",
    "washed", "shook", "lent", "missed", "saw", "wrapped", "kicked", "liked", "forgot", "hid", "carried", "left",
)  # fmt: skip
DO = (
    "buy", "sell", "lift", "fetch", "hold", "clean", "visit", "paint", "keep", "wrap", "open", "try", "meet", "use",
    "carry", "hide", "stop", "like", "drop", "push", "follow", "join",
)  # fmt: skip
NOTED = "Thank you for telling me."
"""What is said to what asks for no fact."""
TAILS = (
    "f| |p|, |f| |p", "n| |f| |p", "f|, |f| |p", "f|; |p| |f", "n| |p|, |f|, |p", "f| (|p|)", "p| |f|, |p", "f|; |f",
)  # fmt: skip
"""f: a figure, p: a phrase, n: a number in words."""
COUNTS = ("one", "two", "three", "four", "six", "eight", "ten")
FIGURES = (
    "{n} {u}", "{m} {u}", "{n}.{d} {u}", "{n} to {m} {u}", "-{k} to {n} {u}", "±{n} {u}", "±{n}.{d} %", "{t} {u}",
    "{m} × {n} × {k} mm", "{n} × {k} cm", "up to {m} {u}", "{n} {u} at {k} °C", "about {m} {u}", "at least {n} {u}",
    "0 to {t} {u}", "IP{n}", "{n} in {k}", "1 to {k} {u}", "{n} x {k} x {m}", "{n} %", "M{k}", "{n} {u} a year",
)  # fmt: skip
