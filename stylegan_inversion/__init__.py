"""Real photos inside StyleGAN2's latent space: pSp, e4e and PTI."""

__version__ = "0.1.0"

from stylegan_inversion.editing.directions import Direction as Direction
from stylegan_inversion.pipelines.encoder import E4EPipeline as E4EPipeline
from stylegan_inversion.pipelines.encoder import PSPPipeline as PSPPipeline
from stylegan_inversion.pipelines.output import InversionOutput as InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline as PTIPipeline
from stylegan_inversion.pipelines.restyle import ReStylePipeline as ReStylePipeline
