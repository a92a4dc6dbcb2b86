"""An analysis as Markdown."""

from stpl_jax.markdown import link, text


def results_text(results):
    """Sets the results as Markdown."""
    names = list(results["checkpoints"])
    counts = results["pixels"].values()
    parts = [
        "# Feature space",
        f"L2-normalised features of the backbone's last stage, of {sum(counts)} pixels out of {results['clips']} "
        f"validation clips: {max(counts)} of each class, fewer where there are fewer ({min(counts)} at least). Every "
        "network is asked about the same pixels.",
        "σ_intra is the mean squared distance of a class's pixels to their mean (lower is better), σ_inter that of the "
        "class means to theirs (higher is better).",
    ]
    for subset, members in results["subsets"].items():
        parts.append(f"## {subset_title(subset, members)}")
        lines = ["| checkpoint | σ_intra | σ_inter | σ_inter / σ_intra |", "| --- | ---: | ---: | ---: |"]
        for name in names:
            intra, inter = (results["checkpoints"][name]["variances"][subset][key] for key in ("intra", "inter"))
            ratio = inter / intra if intra else None
            lines.append(f"| {text(name)} | {_figure(intra)} | {_figure(inter)} | {_figure(ratio)} |")
        parts += ["\n".join(lines)]
        if f"tsne_{subset}" in results["pictures"]:
            parts.append(f"![t-SNE]({link(results['pictures'][f'tsne_{subset}'])})")
    ks = results["neighbours"]
    lines = [f"| checkpoint | {' | '.join(f'k={k}' for k in ks)} |", "| --- |" + " ---: |" * len(ks)]
    for name in names:
        shares = results["checkpoints"][name]["same_class_share"]
        lines.append(f"| {text(name)} | {' | '.join('-' if s is None else f'{100 * s:.1f}' for s in shares)} |")
    parts += ["## Same-class pixels among the k nearest, in percent", "\n".join(lines)]
    parts += [f"![nearest neighbours]({results['pictures']['knn']})", "## Feature maps"]
    parts += ["The three directions in which the features of all networks together vary most, as red, green and blue."]
    parts += [f"![feature maps]({results['pictures']['feature_maps']})"]
    return "\n\n".join(parts) + "\n"


def subset_title(subset, members):
    """How a set of classes is called in headings."""
    return f"All {len(members)} classes" if subset == "all" else ", ".join(members).capitalize()


def _figure(value):
    return "-" if value is None else f"{value:.4f}"
