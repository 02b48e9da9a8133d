"""The textures that sections of pieces are made of, and the words for them.

Phrases name a texture, clauses of a dozen words or more say how it goes on; all of them
are true of every rendering (pitches, rates and which notes come are drawn).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clap_jax.pipeline import loops, sounds


@dataclass(frozen=True)
class Texture:
    """name: unique. phrases: "a slow drum beat"; clauses: "deep strokes that ..."."""

    name: str
    bar: loops.Bar
    phrases: Sequence[str]
    clauses: Sequence[str]


def render(
    texture: Texture, rng: np.random.Generator, samples: int, rate_hz: int
) -> np.ndarray:
    """A section of a texture, see `loops.loop`."""
    return loops.loop(texture.bar, rng, samples, rate_hz)


TEXTURES: tuple[Texture, ...] = (
    Texture(
        "slow drum",
        loops.beat(loops.hit(sounds.drum, 0.35), 0.9, 1.1),
        (
            "a slow low drum beat",
            "an unhurried bass drum",
            "a heavy drum at a walking pace",
            "the slow thud of a big drum",
        ),
        (
            "deep strokes that fall about once a second with silence in between them",
            "one dull blow after another, each left to die away before the next",
            "a lone low pulse with much empty space around every one of its strokes",
        ),
    ),
    Texture(
        "fast drum",
        loops.beat(loops.hit(sounds.drum, 0.2), 5.0, 6.0),
        (
            "a fast drum roll",
            "rapid drumming without a pause",
            "a drum that is beaten quickly",
            "hurried beats on a drum",
        ),
        (
            "five or six low strokes in each second that run on without any rest",
            "a driving rhythm of quick thuds which leaves hardly a gap between two blows",
            "a restless low pattering that keeps up its high speed all of the time",
        ),
    ),
    Texture(
        "slow low bell",
        loops.beat(loops.bell(190, 250, 0.7), 0.45, 0.55),
        (
            "a low church bell that tolls slowly",
            "the slow toll of a deep bell",
            "deep bell strikes far apart",
            "a big bell that rings slowly",
        ),
        (
            "a metallic stroke every other second whose hum hangs on for a long time",
            "solemn low ringing that fades away gradually before the metal is struck again",
            "one long and dark clang after another with plenty of time to die out",
        ),
    ),
    Texture(
        "fast high bells",
        loops.beat(loops.bell(1100, 1500, 0.09), 4.5, 5.5),
        (
            "fast high bell strikes",
            "small bells that jingle rapidly",
            "a quick tinkling of little bells",
            "bright chimes in quick succession",
        ),
        (
            "about five short metallic notes in every second that sparkle high up in pitch",
            "a glittering stream of brief and bright clinks that follow each other closely",
            "light and shiny ringing high above, never still for more than a moment or two",
        ),
    ),
    Texture(
        "rising siren over noise",
        loops.sweeps(sounds.rising_sweep, 1000, 2.0, 0.2),
        (
            "a rising siren over noise",
            "a tone that climbs again and again through hiss",
            "an upward sweep on top of static",
            "a noisy siren that keeps rising",
        ),
        (
            "a glide from low to high that starts over every two seconds in steady hiss",
            "one long climb after another, each lasting two seconds, with static underneath it",
            "a pitch that goes up and up, drops back and goes up again amid white noise",
        ),
    ),
    Texture(
        "falling tone",
        loops.sweeps(sounds.falling_sweep, 1800, 1.0),
        (
            "a falling tone",
            "a clear tone that slides down again and again",
            "downward swoops of a pure tone",
            "a whistling fall that repeats",
        ),
        (
            "a clean glide from high to low that starts over in each and every second",
            "a dive from a high pitch to a lower one, over and over, without noise",
            "descending slides, one a second, which sound like something that drops from the sky",
        ),
    ),
    Texture(
        "low organ",
        loops.melody(sounds.organ_chord, 110, 2.0),
        (
            "a low organ that plays chords",
            "slow dark organ chords",
            "deep chords held on an organ",
            "a solemn organ in a low register",
        ),
        (
            "full and warm harmony that moves to another chord after every two seconds",
            "broad sustained chords with many voices that change slowly, as in a big church",
            "three notes at a time held together for two seconds before they move elsewhere",
        ),
    ),
    Texture(
        "high organ",
        loops.sustained(sounds.organ_chord, 560, 700),
        (
            "a high organ chord that is held",
            "one bright chord sustained on an organ",
            "a shrill organ that does not move",
            "a long high chord of organ pipes",
        ),
        (
            "several high voices that tremble a little and stay on the same harmony throughout",
            "a steady and piercing harmony with a light flutter which goes on and on",
            "the same three high notes together all the time, with a slight shake in them",
        ),
    ),
    Texture(
        "whistled melody",
        loops.melody(sounds.whistle, 1000, 0.5),
        (
            "a whistled melody",
            "someone whistling a tune",
            "a tune whistled at an easy pace",
            "a melody in a clear whistle",
        ),
        (
            "two breathy notes a second with vibrato that wander up and down a scale",
            "a thin and airy voice that steps from note to note twice in a second",
            "single notes with a little breath in them that walk about without any backing",
        ),
    ),
    Texture(
        "plucked arpeggio",
        loops.beat(loops.pluck(330, 6, 0.12), 7.5, 8.5, 0.0),
        (
            "quick plucked strings",
            "a fast arpeggio on a harp",
            "rapid picking like that of a banjo",
            "plucked notes that ripple along fast",
        ),
        (
            "some eight short notes in a second that tumble up and down the strings",
            "a nimble run of brief picked tones, each gone nearly as soon as it sounds",
            "a lively and even pattern of short string tones in the middle of the range",
        ),
    ),
    Texture(
        "plucked bass",
        loops.beat(loops.pluck(55, 8, 0.25), 1.9, 2.1, 0.0),
        (
            "a plucked bass line",
            "a bass guitar on its own",
            "low bass notes at a medium pace",
            "a walking bass",
        ),
        (
            "two round and low string notes each second that stroll from one to another",
            "deep tones picked one by one, twice a second, with a soft buzz in each",
            "a low and springy line of single notes that keeps moving at an even step",
        ),
    ),
    Texture(
        "crickets",
        loops.sustained(sounds.cricket_trill, 2.2, 2.8),
        (
            "crickets that chirp",
            "the trill of a cricket",
            "an insect that chirps in the night",
            "a chirring cricket",
        ),
        (
            "a very high and buzzing trill that stops and starts some twice in a second",
            "short bursts of a shrill flutter with small breaks, like a warm summer night",
            "thin and dry chirring at the top of hearing, switched on and off without end",
        ),
    ),
    Texture(
        "helicopter",
        loops.sustained(sounds.helicopter, 13, 16),
        (
            "a helicopter that hovers",
            "the chopping of helicopter blades",
            "a rotor that beats the air",
            "a hovering helicopter",
        ),
        (
            "a dull and rapid flapping of air, more than a dozen beats in every second",
            "muffled chops which come so fast that they nearly melt into one long rumble",
            "low gusts of air cut up by blades that spin quickly and never slow down",
        ),
    ),
    Texture(
        "rain",
        loops.sustained(sounds.rain),
        (
            "steady rain",
            "rain that pours down",
            "the patter of heavy rain",
            "a downpour of rain",
        ),
        (
            "countless tiny drops that merge into an even and bright rustle without any tune",
            "a dense high crackle of water which neither swells nor stops at any time",
            "wet hissing made of a great many small splashes on all sides of us",
        ),
    ),
    Texture(
        "wind",
        loops.sustained(sounds.wind),
        (
            "a howling wind",
            "wind that moans",
            "gusts of wind",
            "the howl of a storm",
        ),
        (
            "a hollow airy moan that swells and sinks slowly and changes its colour",
            "air that rushes past and rises and falls between two hollow tones as it blows",
            "breathy waves of sound, now darker and now brighter, with no beat in them",
        ),
    ),
    Texture(
        "hand claps",
        loops.beat(loops.hit(sounds.hand_clapping, 0.25), 1.9, 2.2),
        (
            "hands that clap a steady beat",
            "steady hand claps",
            "people clapping in time",
            "regular clapping",
        ),
        (
            "two crisp smacks of palms in each second which mark an even and dry pulse",
            "short and sharp claps, about two a second, as if a crowd kept the time",
            "a plain rhythm of slaps, evenly spaced, with nothing else to be heard around it",
        ),
    ),
    Texture(
        "wailing siren",
        loops.sustained(sounds.siren, 0.9, 1.2),
        (
            "a wailing siren",
            "a siren that goes up and down",
            "the wail of an ambulance",
            "an emergency siren",
        ),
        (
            "a loud tone that swings up and back down smoothly about once in each second",
            "a bright howl whose pitch rises and sinks in turn, round and round, in alarm",
            "an urgent voice which bends high, then low, then high again without a break",
        ),
    ),
    Texture(
        "beeping alarm",
        loops.sustained(sounds.beeping_alarm, 6.0, 7.5),
        (
            "a fast beeping alarm",
            "rapid electronic beeps",
            "an alarm that beeps hastily",
            "quick beeps of an alarm clock",
        ),
        (
            "one and the same tone switched on and off some six or seven times a second",
            "hard and equal blips on a single pitch that come in a nervous hurry",
            "short electric pips, all alike, which nag on and on at a very high rate",
        ),
    ),
    Texture(
        "ticking clock",
        loops.sustained(sounds.ticking_clock, 2.2, 2.8),
        (
            "a ticking clock",
            "the tick of a clock",
            "a clock that ticks and tocks",
            "a pendulum clock",
        ),
        (
            "tiny dry clicks, by turns higher and lower, a little more than two a second",
            "a small mechanical tick and then a tock, evenly on and on, in plain silence",
            "faint and pointed snaps at a regular step with nothing but quiet between them",
        ),
    ),
    Texture(
        "engine drone",
        loops.sustained(sounds.engine_hum, 60, 85),
        (
            "an engine that hums",
            "the low drone of a motor",
            "a motor running idle",
            "a deep engine hum",
        ),
        (
            "a rough and low drone full of overtones that hardly changes as it goes on",
            "a steady growl, with a slight puffing in it, like a lorry that stands still",
            "one long buzz far down in pitch, thick and dull, which wavers just a little",
        ),
    ),
    Texture(
        "buzzing lead",
        loops.melody(sounds.buzzer, 220, 0.25),
        (
            "a buzzing synthesizer tune",
            "an electronic lead with a harsh buzz",
            "a video game melody",
            "a fast tune on a square wave synthesizer",
        ),
        (
            "four hollow and rasping notes in a second that jump about on a scale",
            "quick steps of a gritty electronic voice, as in the arcade machines of old",
            "a harsh and hollow line that hops from tone to tone four times a second",
        ),
    ),
    Texture(
        "laser shots",
        loops.beat(loops.hit(sounds.laser, 0.22), 1.3, 1.6, 0.05),
        (
            "laser shots",
            "zapping laser guns",
            "shots from a toy ray gun",
            "a space gun that fires",
        ),
        (
            "sudden zaps that drop from very high to low within a fraction of a second",
            "brief electronic pews, more than one a second, with silence between every two",
            "squeaky shots that plunge in pitch, fired singly, like a battle in outer space",
        ),
    ),
    Texture(
        "bird song",
        loops.beat(loops.hit(sounds.bird, 0.18), 2.6, 3.2, 0.15),
        (
            "birds that sing",
            "a chirping bird",
            "the song of a small bird",
            "birdsong",
        ),
        (
            "sweet little whistles that arch up and down, some three of them in a second",
            "high and rounded chirps at slightly uneven moments, as in a garden at dawn",
            "short bending peeps from the trees, quick and clear, with small gaps between them",
        ),
    ),
    Texture(
        "frogs",
        loops.beat(loops.hit(sounds.frog, 0.22), 1.0, 1.2, 0.1),
        (
            "a croaking frog",
            "frogs at a pond",
            "the croak of a frog",
            "a frog that calls",
        ),
        (
            "a creaky and throaty call about once in a second with stillness in between",
            "short rattling croaks, one by one, each like a wooden comb that is scraped",
            "a rough voice that grates briefly, waits and grates again near the still water",
        ),
    ),
)

NAMES: tuple[str, ...] = tuple(texture.name for texture in TEXTURES)
