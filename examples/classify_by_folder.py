"""Classify images by the folders they are in, and list likely label errors.

    python examples/classify_by_folder.py STORE [--level -1] [--folds 5] [--plot confusion.png]

Each image is predicted by a model that has seen neither it nor its
near-duplicates. Prints the accuracy of k-NN and of a linear probe, the
confusion matrix of the probe (--plot draws it with matplotlib), and the images
whose folder the probe finds least likely: its probability, the folder that it
would choose, the path.
"""

import argparse
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

import rn50feat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("store")
parser.add_argument("--level", type=int, default=-1, help="which folder: -1 is the image's own, 0 the topmost")
parser.add_argument("--folds", type=int, default=5)
parser.add_argument("--top", type=int, default=20, help="how many label errors to list at most")
parser.add_argument("--plot", help="draw the confusion matrix to this file")
args = parser.parse_args()

store = rn50feat.FeatureStore(args.store)
with store.reading():  # all calls see the same rows
    features, labels = normalize(np.asarray(store, np.float32)), store.labels(args.level)
    paths, ids = store.paths(), store.column("ids")
scenes = rn50feat.duplicates(store).scenes(ids)
classes = [label for label in np.unique(labels) if len(set(scenes[labels == label])) >= args.folds]
if len(classes) < 2:
    sys.exit(f"{args.store} has fewer than two folders with {args.folds} different images: try another --level")
rows = np.flatnonzero(np.isin(labels, classes))

models = {
    "k-NN": KNeighborsClassifier(5),  # at unit length, the nearest are those with the highest cosines
    "linear probe": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)),
}
for name, model in models.items():
    folds = StratifiedGroupKFold(args.folds)
    data = {"X": features[rows], "y": labels[rows], "groups": scenes[rows]}
    chances = cross_val_predict(model, **data, cv=folds, method="predict_proba")
    predicted = np.array(classes)[chances.argmax(axis=1)]
    print(f"{name}: {np.mean(predicted == labels[rows]):.3f} of {len(rows)} images are put into their folders")

matrix = confusion_matrix(labels[rows], predicted, labels=classes)
for label, counts in zip(classes, matrix):
    print(*(f"{number:5}" for number in counts), f" {str(label)!r}")
if args.plot:
    ConfusionMatrixDisplay(matrix, display_labels=classes).plot(xticks_rotation="vertical").figure_.savefig(args.plot)

own = chances[np.arange(len(rows)), np.searchsorted(classes, labels[rows])]
for i in np.argsort(own)[: args.top]:
    if predicted[i] != labels[rows[i]]:
        print(f"{own[i]:.3f}  {str(predicted[i])!r}  {paths[rows[i]]!r}")
