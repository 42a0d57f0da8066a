from integrators import *
