"""Does a string read as text? Cheap signs: the share of letters, common words, common letter pairs.

Only for choosing which decodings are worth judging; nothing is ever blocked or cleared by these lists.
"""

from __future__ import annotations

import re

# Function words of the most used Latin-script languages, and words that instructions to a model are made of.
_COMMON_WORDS = """
the and for are you not with this that have from they will would there their what about which when make like time
just know take people into year your good some could them see other than then now look only come its over think also
back after use two how our work first well way even new want because any these give day most was were has had been did
does who why where can may must should shall let here very much many more such each every before between under again
while through same own both few those being out off down all one out get say she her him his two four five
ignore disregard forget override bypass previous prior above earlier preceding following below instructions instruction
prompt prompts system developer admin administrator mode rules rule guidelines policy policies restrictions restriction
filter filters safety security secret secrets password passwords key keys token tokens credential credentials reveal
show print repeat output display tell write send email message messages user users assistant model context initial
hidden internal original exactly verbatim word words everything anything nothing something always never instead act
pretend roleplay role character persona free without limits limit unlimited unrestricted allowed forbidden illegal
explain describe create build steps step guide bomb weapon weapons drug drugs malware virus hack hacking exploit attack
code script file files delete remove execute run command commands function call tool tools access data database
question questions answer answers respond response reply follow obey comply refuse warning disclaimer please now start
begin end stop continue open close read translate summarize text document website link click visit download install
world human language english content information request task tasks help need important urgent immediately
said says told given provide generate list name account bank money credit card number address phone
hello jailbreak dan enabled disable disabled activate activated confirm authorized permission confidential private leak
und der die das nicht ist ein eine mit für von auf den dem des ich sie wie alle aber oder auch nur wenn werden wird
ignoriere anweisungen vorherigen vergiss regeln
los las una por con para como pero todo todas todos este esta que del ignora instrucciones anteriores olvida reglas
les une est pas pour dans avec vous nous sur par plus tout toutes tous ignorez instructions précédentes oublie
non che per sono della questo tutte tutti istruzioni precedenti dimentica regole
não uma com instruções anteriores esqueça regras het een van niet deze vorige instructies negeer
"""
COMMON = frozenset(_COMMON_WORDS.split())
_COMMON_PAIRS = """
th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de se le sa si ar ve ra ld
ur ro me ll ow no us io co ma be ri li ne ic ch la el ns em ce un il so ec ei ie di ge om wi ut ho tr ss ee ot ta na
lo mo we do wh ay ly pr vi ev ey ct ac ul rs ts ig gn ad pa po sh id wo ai ke ry ck oo go su fo ir
"""
_PAIRS = frozenset(_COMMON_PAIRS.split())
_NOT_LETTER = re.compile(r"[\W\d_]+")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LATIN_PAIR = re.compile(r"[a-z](?=[a-z])")
_LONG_WORD = re.compile(r"[^\W\d_]{3}")
_CHUNK = 512
_STRETCH = re.compile(r"(?:[^\W\d_]|[ ,.!?':;-]){24,512}+")


def reads_as_text(text: str) -> bool:
    """Whether a decoded string is writing of any script, rather than data: letters, spaces, hardly anything else.

    One stretch of writing is enough: junk before it must not hide it.
    """
    if any(_chunk_reads(text[first : first + _CHUNK]) for first in range(0, len(text), _CHUNK)):
        return True
    return any(_chunk_reads(match.group()) for match in _STRETCH.finditer(text))


def _chunk_reads(chunk: str) -> bool:
    if len(chunk) < 8 or _CONTROL.search(chunk) or chunk.count("\ufffd") * 10 > len(chunk):
        return False
    letters = len(_NOT_LETTER.sub("", chunk))
    spaces = len(chunk) - len("".join(chunk.split()))
    marks = 0 if chunk.isascii() else sum(0x300 <= ord(c) < 0x2000 and not c.isalnum() for c in chunk)
    if letters < 6 or (letters + spaces + marks) * 10 < len(chunk) * 7:
        return False
    return not chunk.isascii() or (_LONG_WORD.search(chunk) is not None and pairs_share(chunk) >= 0.3)


def reads_as_code(text: str) -> bool:
    """Whether a decoded string may be encoded once more: letters and digits, hardly anything else, no language."""
    sample = text[:_CHUNK]
    if len(sample) < 12 or not sample.isascii() or _CONTROL.search(sample):
        return False
    return sum(map(str.isalnum, sample)) * 10 >= (len(sample) - sample.count(" ")) * 8


def pairs_share(text: str) -> float:
    """Share of neighbouring Latin letters that are common pairs; about 0.6 in running text, 0.2 in random letters.

    Looks at the first 4,096 characters.
    """
    lowered = text[:4_096].lower()
    pairs = len(_LATIN_PAIR.findall(lowered))
    if pairs < 3:
        return 0.0
    return sum(map(_PAIRS.__contains__, map(str.__add__, lowered, lowered[1:]))) / pairs


def segmented(letters: str) -> str:
    """Spaces put back between common words of a run of letters; the longest words win. O(len · longest word)."""
    lowered = letters.lower()
    if len(lowered) != len(letters) or len(letters) > 2_000:
        return letters
    best = [0.0] * (len(letters) + 1)
    cut = list(range(-1, len(letters)))
    for end in range(1, len(letters) + 1):
        best[end] = best[end - 1] - 1.0
        for start in range(max(0, end - 14), end - 1):
            if lowered[start:end] in COMMON and best[start] + (end - start) - 1.0 > best[end]:
                best[end], cut[end] = best[start] + (end - start) - 1.0, start
    words: list[str] = []
    end = len(letters)
    loose = end
    while end > 0:
        if cut[end] < end - 1:
            words += [letters[end:loose], letters[cut[end] : end]]
            loose = cut[end]
        end = cut[end]
    words.append(letters[:loose])
    return " ".join(filter(None, reversed(words)))
