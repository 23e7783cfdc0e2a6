"""Every method has a look of its own, and a legend of all of them fits its figure."""

import pandas as pd

from retrobench.core.registry import method_names
from retrobench.report.figures import style


def test_every_method_has_a_look_of_its_own():
    looks = {name: style.look(name) for name in method_names()}
    assert len({look["color"] for look in looks.values()}) == len(looks)


def test_a_legend_of_all_methods_is_inside_the_figure():
    drawing, (panel,) = style.figure(2.4)
    for name in method_names():
        panel.plot([1, 2], [1, 2], **style.look(name))
    style.finish(drawing, pd.DataFrame({"key": ["k"]}), None, "a note")
    drawing.canvas.draw()
    (legend,) = drawing.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= drawing.bbox.width and box.y1 <= drawing.bbox.height
    assert panel.get_window_extent().height > 0.4 * 2.4 * drawing.dpi
