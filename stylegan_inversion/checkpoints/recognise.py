"""What a foreign file is."""

from stylegan_inversion.checkpoints.model_folder import source_of as source_of
from stylegan_inversion.checkpoints.part import SingleFile as SingleFile
from stylegan_inversion.checkpoints.single_file import read_single_file as read_single_file
