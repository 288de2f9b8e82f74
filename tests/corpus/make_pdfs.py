"""Makes the PDFs beside this file: pip install reportlab==5.1.0; python make_pdfs.py

paper.pdf   four pages as papers have them: a title and a page number on each, words cut at the ends of lines, a
            sentence that goes on over a page's end
locked.pdf  its first page, which opens with the password "river"
owned.pdf   the same, which opens without one, but is encrypted against changes
scan.pdf    a page that is a picture
"""

from pathlib import Path

from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

HERE = Path(__file__).parent

PAGES = [
    ["Land cover from space", "", "A satellite looks at the same river every five days. Its pic-",
     "tures show water, bare ground and forest, which differ in what", "they reflect. Smith et al. have shown how (Fig. 3)."],
    ["Water is dark in the infrared, since it absorbs most of what", "reaches it. A lake that freezes over becomes bright, and a"],
    ["muddy one lies between the two. This is the first confusion", "that a classifier of land cover has to live with."],
    ["Crop land changes with the season. It is bare ground in win-", "ter, green in spring and yellow when the grain is ripe."],
]


def write(name, pages, encrypt=None):
    canvas = Canvas(str(HERE / name), pagesize=(400, 300), invariant=1, encrypt=encrypt)
    for number, lines in enumerate(pages, 1):
        canvas.setFont("Times-Italic", 9)
        canvas.drawString(40, 275, "Journal of Rivers and Lakes, vol. 7")
        canvas.setFont("Times-Roman", 11)
        for i, line in enumerate(lines):
            canvas.drawString(40, 240 - 14 * i, line)
        canvas.setFont("Times-Roman", 9)
        canvas.drawCentredString(200, 20, str(number))
        canvas.showPage()
    canvas.save()


write("paper.pdf", PAGES)
write("locked.pdf", PAGES[:1], StandardEncryption("river", "lake", strength=128))
write("owned.pdf", PAGES[:1], StandardEncryption("", "lake", strength=128, canModify=0))

from PIL import Image  # noqa: E402: reportlab brings it

canvas = Canvas(str(HERE / "scan.pdf"), pagesize=(400, 300), invariant=1)
canvas.drawImage(ImageReader(Image.new("L", (40, 30), 200)), 0, 0, 400, 300)
canvas.save()
