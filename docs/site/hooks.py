"""The site: pages that lie outside docs/, and formulas as MathML, which browsers show without a script."""

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "compare/results/README.md")
LINKED = ("Dockerfile", *(str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("compare/results/*.yaml"))))
_FORMULA = re.compile(r"(?<![\\$`])\$([^$`\n]+)\$(?![\d$`])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Have the pages outside docs/ lie beside those within."""
    for name in OUTSIDE + LINKED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links as they are within the repository to the pages of the site; write formulas out."""
    if "/" not in page.file.src_uri and page.file.src_uri not in OUTSIDE:
        markdown = markdown.replace("](../compare/results)", "](../compare/results/README.md)").replace("](../", "](")
    else:
        markdown = markdown.replace("](docs/", "](").replace("](../../docs/", "](../../")
    return _FORMULA.sub(lambda found: convert(found[1]), markdown)
