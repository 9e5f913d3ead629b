"""Layouts written short: the prompt's budgets, K latents, an answer."""

from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.segments import Segment, Suffix


def layout(prefix=256, patches=1024, answer=16, latent_steps=0, chain=0, roi=0, count="own", cut=False) -> Layout:
    """[latent K, answer T], as VITAL has it; an answer of 0 leaves it out."""
    latent = Segment("latent", "latent", latent_steps, count=count, cut=cut or not latent_steps)
    text = (Segment("tokens", "answer", answer, source="answer", supervised=True),) if answer else ()
    return Layout(prefix, patches, Suffix((latent, *text)), chain, roi)
